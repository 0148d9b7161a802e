"""The search (CPMS) against one pass over the rows it reads, and against a naive one.

    python benchmarks/search.py --out benchmarks/results/search_cpu.json

A pool of synthetic tasks, each with its own rows in a share of every layer's channels, is stored without
training and searched again and again, from what is in memory then. search_over_pass: seconds to find the
composite parent over seconds to put what the search reads on the device and add it up: the tasks' stored
rows, the child, and the pre-trained model; naive_over_search: seconds of NumPy's cosine, model by model and
channel by channel, over seconds of the search. `seconds` tells the first search too, with reading from
disk.
"""

import argparse
import dataclasses
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measurement import interleaved, medians, parse, parser, publish, ratios, seconds_of
from synthetic import moved, stored_pool
from turn import ACTIVE, CLASSES, random_variables

from cwps_jax.core.channels import Layout
from cwps_jax.core.trees import flatten, select
from cwps_jax.learn import composite_parent
from cwps_jax.models import create
from cwps_jax.modules import channel_layout
from cwps_jax.search.composite import Search, composite
from cwps_jax.search.models import Rows, model_rows
from cwps_jax.store.pool import PRETRAINED

QUICK = {"tasks": 8, "repeats": 5}
SIZE = 64  # pixels: any, the layers do not depend on it
ALIGNMENT = 64  # bytes, of XLA's buffers on a CPU


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the ratios and what they were measured on."""
    model = create(arguments.backbone, CLASSES)
    layout = channel_layout(model, jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32))
    rng = np.random.default_rng(arguments.tasks)
    variables = random_variables(model, jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32), rng)
    with tempfile.TemporaryDirectory() as folder:
        pool = stored_pool(
            pathlib.Path(folder) / "pool", variables, layout, arguments.tasks, arguments.active
        )
        # As a trainer hands it over: fetched from the device.
        child = jax.device_get(jax.device_put(moved(variables["params"], rng)))
        search = Search(arguments.distance)
        models = pool.pooled().models
        first = seconds_of(lambda: composite_parent(child, pool, search))
        rows = {number: models.read(number) for number in range(arguments.tasks + 1)}
        names = (PRETRAINED, *pool.tasks)
        whole = [model_rows(layout, flatten(pool.effective(name)["params"])) for name in names]
        pretrained = models.pretrained()
        sketches = {number: models.sketch(number) for number in range(1, arguments.tasks + 1)}
    models = dataclasses.replace(
        models, read=rows.__getitem__, sketch=sketches.__getitem__, pretrained=lambda: pretrained
    )
    # Where a CPU device takes them without a copy, as it does what the search reads.
    read = [copied(tree) for tree in (*rows.values(), flatten(select(child, layout.layer_paths)))]
    total = jax.jit(lambda tree: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(tree)))

    def one_pass() -> None:
        jax.block_until_ready([total(jax.device_put(tree)) for tree in read])

    calls = {
        "pass": one_pass,
        "search": lambda: composite(layout, child, models, search),
        "naive": lambda: naive(layout, model_rows(layout, flatten(child)), whole),
    }
    turns = {name: lambda call=call: seconds_of(call) for name, call in calls.items()}
    seconds = interleaved(turns, arguments.repeats)
    pairs = {
        "search_over_pass": ("search", "pass"),
        "naive_over_search": ("naive", "search"),
    }
    return {
        **ratios(seconds, pairs),
        "seconds": {**medians(seconds), "first": first},
        "read_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(read)),
    }


def copied(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns copies that a CPU device takes as they are, in one piece of memory, of large pages."""
    sizes = [-(-array.nbytes // ALIGNMENT) * ALIGNMENT for array in arrays.values()]
    raw = np.zeros(sum(sizes) + ALIGNMENT, np.uint8)
    copies, first = {}, -raw.ctypes.data % ALIGNMENT
    for (key, array), size in zip(arrays.items(), sizes, strict=True):
        copies[key] = raw[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
        copies[key][...] = array
        first += size
    return copies


def naive(layout: Layout, child: Rows, models: list[Rows]) -> dict[str, np.ndarray]:
    """Returns each channel's model by the highest cosine of changes, one model and channel at a time."""
    start, found = models[0], {}
    for path in (layer.path for layer in layout.layers):  # kernels alone: biases would make it slower yet
        own = child[path] - start[path]
        agreement = np.zeros((len(models), len(own)))
        for number, model in enumerate(models):
            for channel, row in enumerate(model[path]):
                change = row - start[path][channel]
                norms = np.linalg.norm(own[channel]) * np.linalg.norm(change)
                agreement[number, channel] = own[channel] @ change / norms if norms else 0
        found[path] = np.argmax(agreement, axis=0)
    return found


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--backbone", default="resnet18")
    made.add_argument("--tasks", type=int, default=64)
    made.add_argument("--active", type=float, default=ACTIVE, help="share of a task's own channels")
    made.add_argument("--distance", default="change", choices=("l2", "cosine", "change"))
    arguments = parse(made, QUICK)
    publish("search", measure(arguments), arguments)


if __name__ == "__main__":
    main()
