"""The search (CPMS) against one pass over the rows it reads, and against a naive one.

    python benchmarks/search.py --out benchmarks/results/search_cpu.json

A pool of synthetic tasks, each with its own rows in a share of every layer's channels, is stored without
training and searched from memory, as every search after the first is. search_over_pass: seconds to find the
composite parent over seconds to add up all stored rows; compared_over_pass: the same of comparing the rows
alone, which grows with the pool, without turning the child into rows and rows into the parent, which does
not; naive_over_search: seconds of NumPy's cosine, model by model and channel by channel, over seconds of the
search. `seconds` tells the first search too, with reading from disk and compiling.
"""

import argparse
import dataclasses
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measurement import interleaved, medians, parse, parser, publish, ratios, seconds_of
from synthetic import moved, stored_pool
from turn import ACTIVE, CLASSES, random_variables

from cwps_jax.core import candidates, nearest
from cwps_jax.core.channels import Layout
from cwps_jax.core.search import Search, composite
from cwps_jax.core.stored import Rows, StoredModels, model_rows
from cwps_jax.core.trees import flatten
from cwps_jax.learn import composite_parent
from cwps_jax.models import create
from cwps_jax.modules import channel_layout
from cwps_jax.store.pool import PRETRAINED

QUICK = {"tasks": 8, "repeats": 5}
SIZE = 64  # pixels: any, the layers do not depend on it
MEMORY = 64 << 30  # bytes of rows that stay in memory: all of them


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
        child = moved(variables["params"], rng)
        search = Search(arguments.distance)
        models = pool.pooled().stored(layout)
        models.kept.limit = MEMORY
        first = seconds_of(lambda: composite_parent(child, pool, search))
        rows = {number: models.read(number) for number in range(arguments.tasks + 1)}
        names = (PRETRAINED, *pool.tasks)
        whole = [model_rows(layout, flatten(pool.effective(name)["params"])) for name in names]
    models = dataclasses.replace(models, read=rows.__getitem__)
    stored = [jax.device_put(dict(rows[number])) for number in range(1, arguments.tasks + 1)]
    tables = candidates.tables_of(layout, models, "changes")
    start = candidates.starts(tables, models, "changes")
    changes = {name: jnp.ones_like(rows) for name, rows in start.items()}
    total = jax.jit(lambda tree: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(tree)))

    def one_pass() -> None:
        jax.block_until_ready([total(tree) for tree in stored])

    calls = {
        "pass": one_pass,
        "search": lambda: composite(layout, child, models, search),
        "compared": lambda: compare(tables, models, changes),
        "naive": lambda: naive(layout, model_rows(layout, flatten(child)), whole),
    }
    turns = {name: lambda call=call: seconds_of(call) for name, call in calls.items()}
    seconds = interleaved(turns, arguments.repeats)
    pairs = {
        "search_over_pass": ("search", "pass"),
        "compared_over_pass": ("compared", "pass"),
        "naive_over_search": ("naive", "search"),
    }
    return {
        **ratios(seconds, pairs),
        "seconds": {**medians(seconds), "first": first},
        "stored_bytes": sum(leaf.nbytes for tree in stored for leaf in tree.values()),
    }


def compare(tables: candidates.Tables, models: StoredModels, changes: candidates.Starts) -> None:
    """Compares all stored rows with a child's changes."""
    blocks = candidates.blocks(tables, models, "changes")
    jax.block_until_ready([nearest.products(block, changes) for block in blocks])


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
