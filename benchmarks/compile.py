"""Compiling the training steps: cold against the persistent cache, and how often over two tasks.

    python benchmarks/compile.py --out benchmarks/results/compile_cpu.json

cached_over_cold: seconds to compile a stage's step with a filled persistent cache over seconds with an empty
one, tracing included in both, for each stage's step and in sum. `compilations`: how many programs XLA
compiles for a first task, for a second one with another number of images and classes, and for a third one
with the second's classes, whole, from the search to the stored task.
"""

import argparse
import contextlib
import functools
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
from measurement import interleaved, medians, model_parser, parse, publish, ratios, seconds_of
from synthetic import CountCompilations, learner
from turn import Turn

STAGES = ("finetune", "soft", "hard")
QUICK = {"backbone": "resnet8", "size": 32, "batch": 8, "repeats": 2, "stages": ("hard",)}


@contextlib.contextmanager
def persistent_cache(folder: pathlib.Path) -> Iterator[None]:
    """Lets JAX keep every compiled program in the folder, and forget those that it holds in memory."""
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    jax.clear_caches()
    compilation_cache.reset_cache()
    for name, value in settings.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def seconds_to_compile(stage: str, arguments: argparse.Namespace, folder: pathlib.Path | None) -> float:
    """Returns the seconds to trace and compile a stage's step, with a cache or with an empty one."""
    turn = Turn(stage, arguments, arguments.size, arguments.batch)
    with tempfile.TemporaryDirectory() as empty, persistent_cache(folder or pathlib.Path(empty)):
        return seconds_of(turn.prepare)


def compilations(arguments: argparse.Namespace) -> dict[str, int]:
    """Returns how many programs were compiled for each of three tasks."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        learn = learner(pathlib.Path(folder), arguments)
        for name, items, classes in (("first", 4, 5), ("second", 3, 4), ("third", 5, 4)):
            with CountCompilations() as counted:
                learn(name, items * arguments.batch, classes)
            found[name] = counted.count
            print(f"{name} task: {', '.join(sorted(counted.names)) or 'nothing compiled'}")
    return found


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns cached over cold for each stage, and the compilations of three tasks."""
    counted = compilations(arguments)
    with tempfile.TemporaryDirectory() as filled:
        turns = {}
        for stage in arguments.stages:
            turns[f"{stage}_cold"] = functools.partial(seconds_to_compile, stage, arguments, None)
            cached = functools.partial(seconds_to_compile, stage, arguments, pathlib.Path(filled))
            turns[f"{stage}_cached"] = cached
        # The first turn, which does not count, fills the cache.
        seconds = interleaved(turns, arguments.repeats)
    pairs = {f"{stage}_cached_over_cold": (f"{stage}_cached", f"{stage}_cold") for stage in arguments.stages}
    for kind in ("cold", "cached"):
        stages = zip(*(seconds[f"{stage}_{kind}"] for stage in arguments.stages), strict=True)
        seconds[kind] = [sum(repeat) for repeat in stages]
    pairs["cached_over_cold"] = ("cached", "cold")
    return {**ratios(seconds, pairs), "seconds": medians(seconds), "compilations": counted}


def main() -> None:
    made = model_parser(__doc__, backbone="resnet18", size=96, batch=16)
    made.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    made.add_argument("--epochs", type=int, default=4, help="of each of the tasks")
    arguments = parse(made, QUICK)
    found = measure(arguments)
    publish("compile", found, arguments)
    print(f"programs compiled for each of three tasks: {found['compilations']}")


if __name__ == "__main__":
    main()
