"""A large pool: searching it from disk, and again from memory, over reading its files through.

    python benchmarks/pool.py --out benchmarks/results/pool_cpu.json

Synthetic tasks, each with its own rows in a share of every layer's channels, are stored without training.
cold_search_over_read: seconds to open the pool, read and hash it, and find a composite parent, over seconds
to read the same files through; both find nothing of them in the system's file cache. `seconds` tells the
next search too, of rows that stayed in memory. The first turn, which compiles, does not count.
"""

import argparse
import os
import pathlib
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measurement import interleaved, medians, parse, parser, publish, ratios, seconds_of
from synthetic import moved, stored_pool
from turn import ACTIVE, CLASSES, random_variables

from cwps_jax.learn import composite_parent
from cwps_jax.models import create
from cwps_jax.modules import channel_layout
from cwps_jax.store.pool import Pool

QUICK = {"backbone": "resnet8", "tasks": 8, "repeats": 2}
SIZE = 64  # pixels: any, the layers do not depend on it
MEMORY = 64 << 30  # bytes of rows that stay in memory: all of them
READERS = 8  # threads
PIECE = 4 << 20  # bytes that a file is read by


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the ratios and what they were measured on."""
    model = create(arguments.backbone, CLASSES)
    images = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    layout = channel_layout(model, images)
    rng = np.random.default_rng(arguments.tasks)
    variables = random_variables(model, images, rng)
    child = jax.device_get(moved(variables["params"], rng))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = pathlib.Path(name) / "pool"
        stored_pool(folder, variables, layout, arguments.tasks, arguments.active)
        files = [path for path in folder.rglob("*") if path.is_file()]
        again: list[float] = []

        def search(pool: Pool) -> None:
            pool.pooled().models.kept.limit = MEMORY
            composite_parent(child, pool)

        def cold() -> float:
            forget(files)
            pool = Pool.open(folder)
            seconds = seconds_of(lambda: search(pool))
            again.append(seconds_of(lambda: search(pool)))
            return seconds

        def read() -> float:
            forget(files)
            return seconds_of(lambda: read_through(files))

        seconds = interleaved({"read": read, "cold": cold}, arguments.repeats)
        seconds["again"] = again[1:]
        return {
            **ratios(seconds, {"cold_search_over_read": ("cold", "read")}),
            "seconds": medians(seconds),
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
    made.set_defaults(repeats=5)
    made.add_argument("--backbone", default="resnet50")
    made.add_argument("--tasks", type=int, default=256)
    made.add_argument("--active", type=float, default=ACTIVE, help="share of a task's own channels")
    made.add_argument("--folder", type=pathlib.Path, help="where the pool is stored meanwhile")
    arguments = parse(made, QUICK)
    publish("pool", measure(arguments), arguments)


if __name__ == "__main__":
    main()
