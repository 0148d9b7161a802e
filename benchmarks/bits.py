"""Reading a task in few bits: opening it from disk over opening it in float32.

    python benchmarks/bits.py --out benchmarks/results/bits_cpu.json

The same task, with its own rows in a share of every layer's channels, is stored without training in several
pools, in float32 and in few bits; 0 bits are entropy-coded. open_K_bits_over_float32: seconds to open a pool
and give the task's variables, with reading and hashing what that needs, which the system's file cache has.
"""

import argparse
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measurement import interleaved, medians, parse, parser, publish, ratios, seconds_of
from synthetic import stored_pool
from turn import ACTIVE, CLASSES, random_variables

from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.methods.method import Stored
from cwps_jax.models import create
from cwps_jax.modules import channel_layout
from cwps_jax.store.pool import PRETRAINED, Pool

QUICK = {"backbone": "resnet18", "repeats": 4}
SIZE = 64  # pixels: any, the layers do not depend on it
BITS = (8, 4, 3, 2, 0)
BYTE_BUDGET = 0.02  # of what is entropy-coded, row_bits 0


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the ratios, and each pool's share of a backbone's bytes."""
    model = create(arguments.backbone, CLASSES)
    images = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    layout = channel_layout(model, images)
    variables = random_variables(model, images, np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as name:
        whole = stored_pool(pathlib.Path(name) / "float32", variables, layout, 1, arguments.active)
        folders, shares = {"float32": whole.folder}, {"float32": whole.count("task0").byte_ratio}
        version = whole.version("task0")
        own, rows = dict(whole._trees.own(version)), whole._trees.rows(version.id)
        for bits in BITS:
            pool = Pool.create(pathlib.Path(name) / str(bits), whole.effective(PRETRAINED), layout)
            stored = pool.coded(Stored(unflatten(own), rows), bits, BYTE_BUDGET)
            pool.add_stored("task0", whole.method("task0"), stored, {})
            folders[f"{bits}_bits"] = pool.folder
            shares[f"{bits}_bits"] = pool.count("task0").byte_ratio
        turns = {
            kind: lambda folder=folder: seconds_of(lambda: Pool.open(folder).effective("task0"))
            for kind, folder in folders.items()
        }
        seconds = interleaved(turns, arguments.repeats)
    pairs = {f"open_{bits}_bits_over_float32": (f"{bits}_bits", "float32") for bits in BITS}
    numbers = sum(leaf.size for leaf in flatten(variables["params"]).values())
    return {
        **ratios(seconds, pairs),
        "seconds": medians(seconds),
        "byte_ratios": shares,
        "parameters": numbers,
    }


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--backbone", default="resnet50")
    made.add_argument("--active", type=float, default=ACTIVE, help="share of a task's own channels")
    arguments = parse(made, QUICK)
    publish("bits", measure(arguments), arguments)


if __name__ == "__main__":
    main()
