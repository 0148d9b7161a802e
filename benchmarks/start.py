"""From the start of main's processes to the first step: two processes over one.

    python benchmarks/start.py --out benchmarks/results/start_cpu.json

A run on digits is started from nothing, with one fake device a process, and ended after its first step. Each
process is held to a core of its own, as hosts are: one process has one core, two have two. "warm" finds its
compiled programs in a folder, as a run does that goes on; "cold" compiles. It counts until the last process
is there. `seconds` tells the parts, each of which begins where the one before it ends: importing, connecting,
and what comes then until the first step is done (data, shapes, compilation; two also compare what they have).
`of_its_core` is what the last process computed all the while, in seconds of its core.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from typing import Any

from measurement import interleaved, parse, parser, publish, ratios

QUICK = {"backbone": "resnet8", "repeats": 2}
PARTS = ("imported", "connected", "stepped")


def start(arguments: argparse.Namespace) -> None:
    """Is one process of a run, from its start to its first step; prints when each part was done."""
    import jax
    from rich.console import Console

    from cwps_jax import distributed, run
    from cwps_jax.compilation_cache import start_jax
    from cwps_jax.config import run_config
    from cwps_jax.train import saves

    done = [time.time()]
    folder = pathlib.Path(arguments.folder)
    config = run_config(
        {
            **{"backbone": arguments.backbone, "data": "digits", "source": "digits", "tasks": ("negative",)},
            **{"compare": (), "batch_size": 64, "learning_rate": 0.05, "budget": 0.4, "metrics": ("jsonl",)},
            **{"cache_dir": str(folder / "images"), "compilation_cache": arguments.cache},
        }
    )
    if arguments.processes > 1:
        distributed.start(f"localhost:{arguments.port}", arguments.processes, arguments.process)
    done.append(time.time())
    start_jax(config)
    saves.ASKED = 1  # many processes look only now and then whether one is asked to stop

    def stepped() -> bool:
        """Is asked after each step, which may still be under way."""
        jax.block_until_ready(jax.live_arrays())
        print(json.dumps([time.process_time(), *done, time.time()]), flush=True)
        distributed.stop()  # the others are there, too, before the first one ends
        os._exit(0)

    with open(os.devnull, "w") as nowhere:
        run.learn(config, folder / "run", Console(file=nowhere), stepped)


def started(backbone: str, processes: int, cache: str, parts: dict[str, list[float]]) -> float:
    """Returns the seconds from starting so many processes to the first step of the last of them.

    Args:
        backbone: the model's name.
        processes: how many.
        cache: folder of compiled programs; "" compiles.
        parts: the seconds of each part of the last process are put there.
    """
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        port = 20_000 + os.getpid() % 10_000
        given = [sys.executable, __file__, "--backbone", backbone, "--folder", folder, "--cache", cache]
        given += ["--port", str(port), "--processes", str(processes), "--process"]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        environment.pop("XLA_FLAGS", None)  # one device a process
        began = time.time()
        running = [
            subprocess.Popen(
                ["taskset", "--cpu-list", str(cores[process % len(cores)]), *given, str(process)],
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for process in range(processes)
        ]
        told = [one.communicate()[0].splitlines() for one in running]
    if any(one.returncode for one in running):
        raise SystemExit(f"a start of {processes} processes failed: its lines are above")
    # Gloo, which carries the arrays, prints lines of its own.
    ends = max((json.loads(lines[-1]) for lines in told), key=lambda done: done[-1])
    computed, *ends = ends
    parts["of_its_core"].append(computed)
    for name, first, last in zip(PARTS, [began, *ends], ends, strict=False):
        parts[name].append(last - first)
    return ends[-1] - began


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the ratios, and the seconds of each kind of start and of its parts."""
    parts: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as cache:
        turns = {
            f"{kind}_{processes}": lambda kind=kind, processes=processes: started(
                arguments.backbone,
                processes,
                cache if kind == "warm" else "",
                parts[f"{kind}_{processes}"],
            )
            for kind in ("warm", "cold")
            for processes in (1, 2)
        }
        seconds = interleaved(turns, arguments.repeats)
    pairs = {f"{kind}_start_of_two_over_one": (f"{kind}_2", f"{kind}_1") for kind in ("warm", "cold")}
    middle = {
        turn: {
            "whole": statistics.median(seconds[turn]),
            **{name: statistics.median(values[1:]) for name, values in parts[turn].items()},
        }
        for turn in turns
    }
    return {**ratios(seconds, pairs), "seconds": middle}


def main() -> None:
    made = parser(__doc__)
    made.set_defaults(repeats=10)
    made.add_argument("--backbone", default="resnet18")
    for name, kind in (("folder", str), ("cache", str), ("port", int), ("processes", int), ("process", int)):
        made.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)  # of a process that this one starts
    arguments = parse(made, QUICK)
    if arguments.folder:
        start(arguments)
    publish("start", measure(arguments), arguments)


if __name__ == "__main__":
    main()
