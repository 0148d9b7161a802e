"""A large pool: searching it from disk, and again from memory, over reading its files through.

    python benchmarks/pool.py --out benchmarks/results/pool_cpu.json

Synthetic tasks, each with its own rows in a share of every layer's channels, are stored without training.
They are of a few families, whose tasks have much of their change in common, and so does the child: its
nearest rows are close to each other, so that many have to be compared weight by weight.

cold_search_over_read: seconds to open the pool and find a composite parent, with reading and hashing what
that needs, over seconds to read all of the pool's files through; both find nothing of them in the system's
file cache. `seconds` tells the next searches too, which find it there, and their quartiles. The first turn
does not count.
"""

import argparse
import os
import pathlib
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measurement import interleaved, medians, parse, parser, publish, ratios, seconds_of
from synthetic import moved, related, stored_pool
from turn import ACTIVE, CLASSES, random_variables

from cwps_jax.learn import composite_parent
from cwps_jax.models import create
from cwps_jax.modules import channel_layout
from cwps_jax.store.pool import Pool

QUICK = {"backbone": "resnet8", "tasks": 8, "repeats": 2}
SIZE = 64  # pixels: any, the layers do not depend on it
AGAIN = 5  # searches of a turn after its first one
READERS = 8  # threads
PIECE = 4 << 20  # bytes that a file is read by


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the ratios and what they were measured on."""
    model = create(arguments.backbone, CLASSES)
    images = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    layout = channel_layout(model, images)
    rng = np.random.default_rng(arguments.tasks)
    variables = random_variables(model, images, rng)
    child = jax.device_get(related(variables["params"], moved(variables["params"], rng), family=0))
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or pathlib.Path(name) / "pool"
        wanted = {name: getattr(arguments, name) for name in ("tasks", "active", "families")}
        if not (folder / "index.json").exists():
            stored_pool(folder, variables, layout, **wanted)
        index = Pool.open(folder).index
        if (index.pretrained_record, index.layout, len(index.versions)) != (wanted, layout, arguments.tasks):
            raise SystemExit(f"{folder}: another pool than these flags ask for; remove it")
        files = [path for path in folder.rglob("*") if path.is_file()]
        again: list[float] = []

        def cold() -> float:
            forget(files)
            began = time.perf_counter()
            pool = Pool.open(folder)
            composite_parent(child, pool)
            seconds = time.perf_counter() - began
            again.extend(seconds_of(lambda: composite_parent(child, pool)) for _ in range(AGAIN))
            return seconds

        def read() -> float:
            forget(files)
            return seconds_of(lambda: read_through(files))

        seconds = interleaved({"read": read, "cold": cold}, arguments.repeats)
        seconds["again"] = again[AGAIN:]
        low, _, high = statistics.quantiles(seconds["again"], n=4)
        return {
            **ratios(seconds, {"cold_search_over_read": ("cold", "read")}),
            "seconds": {**medians(seconds), "again_quartiles": [low, high]},
            "searches": len(seconds["again"]),
            "file_bytes": sum(path.stat().st_size for path in files),
        }


def forget(files: list[pathlib.Path]) -> None:
    """Drops the files from the system's cache."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_through(files: list[pathlib.Path]) -> None:
    """Reads every byte of the files once."""

    def read(path: pathlib.Path) -> None:
        buffer = bytearray(PIECE)
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    with ThreadPoolExecutor(READERS) as readers:
        list(readers.map(read, files))


def main() -> None:
    made = parser(__doc__)
    made.set_defaults(repeats=2)
    made.add_argument("--backbone", default="resnet50")
    made.add_argument("--tasks", type=int, default=1000)
    made.add_argument("--active", type=float, default=ACTIVE, help="share of a task's own channels")
    made.add_argument("--families", type=int, default=20, help="of tasks that are related")
    made.add_argument(
        "--folder", type=pathlib.Path, help="where the pool stays; one that is there is searched"
    )
    arguments = parse(made, QUICK)
    publish("pool", measure(arguments), arguments)


if __name__ == "__main__":
    main()
