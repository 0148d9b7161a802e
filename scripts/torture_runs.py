"""Runs that are stopped at random moments, and have to end as if nothing had happened, to the bit.

    python scripts/torture_runs.py --out benchmarks/results/torture_runs.json

A run pre-trains a model and learns several tasks, by two methods each. First it runs undisturbed. Then the
same run is started again and again, and stopped each time: asked to end (SIGTERM), killed (SIGKILL) at a
random moment, or killed just before a random one of the steps in which it writes files. After each stop the
pool has to be whole and to have every task that was committed before, the same to the bit; the next start has
to go on without a repair; and a run that came to its end has to have the pool of the undisturbed one.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from torture import Steps, provenance

from cwps_jax import models, run
from cwps_jax.config import run_config
from cwps_jax.errors import Preempted
from cwps_jax.stop_signals import stop_signals
from cwps_jax.store import Pool

SERVER = multiprocessing.get_context("forkserver")  # each process is born with JAX imported, and no device
TASKS = ("negative", "mirrored", "loops")
SECONDS = 0.5  # from one save to the next
PREEMPTED = 42
ACTIONS = ("SIGTERM", "SIGKILL", "SIGKILL before a write")


class Small(nn.Module):
    """Two convolutions, a batch norm and a head: a step of it takes no time."""

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Conv(16, (3, 3), use_bias=False, dtype=self.dtype)(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, dtype=self.dtype)(x))
        x = nn.relu(nn.Conv(24, (3, 3), strides=2, dtype=self.dtype)(x))
        return nn.Dense(self.num_classes, name="head")(x.mean((1, 2)))


def learn(folder: str, cache: str, devices: int, tasks: int, last: int, told: Connection) -> None:
    """Runs, or goes on with, the run in a folder; in a process of its own."""
    models.BACKBONES["small"] = models.Backbone(Small, {}, 4_000, ())
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    config = run_config(
        {
            "backbone": "small",
            "data": "digits",
            "source": "digits",
            "source_epochs": 1,
            "tasks": TASKS[:tasks],
            "compare": ("finetune",),
            "epochs": 3,
            "batch_size": 64,
            "learning_rate": 0.05,
            "budget": 0.4,
            "shots": 40,
            "save_minutes": SECONDS / 60,
            "cache_dir": cache,
        }
    )
    steps = Steps(last)
    with open(os.devnull, "w") as nowhere, stop_signals(PREEMPTED) as stopping:
        told.send("begins")
        try:
            run.learn(config, pathlib.Path(folder), Console(file=nowhere), stopping)
        except Preempted:
            sys.exit(PREEMPTED)
        told.send(steps.count)


def held(folder: pathlib.Path) -> dict[str, tuple[str, str]]:
    """Returns the hashes of what a run's pool holds, by name; it has to be whole."""
    if not (folder / "pool" / "index.json").exists():
        return {}
    pool = Pool.open(folder / "pool")
    damage = pool.verify()
    if damage:
        raise SystemExit(f"{folder}: torn: {damage}")
    tasks = {one.name: (one.own_sha256, one.rows_sha256) for one in pool.index.versions}
    return {"pretrained": (pool.index.pretrained_sha256, ""), **tasks}


@dataclasses.dataclass
class Ended:
    """How a process ended: its exit status, and how many times it wrote, where it came to its end."""

    status: int
    steps: int = 0


def started(
    folder: pathlib.Path, cache: str, devices: int, tasks: int, action: str = "", when: float = 0.0
) -> Ended:
    """Starts the run of a folder, stops it, and returns how it ended.

    Args:
        folder: the run's.
        cache: folder of compiled programs.
        devices: fake ones.
        tasks: how many it has.
        action: one of `ACTIONS`, or "" to let it run.
        when: seconds after its begin, or the number of the step before which it is killed.
    """
    ours, theirs = SERVER.Pipe()
    last = int(when) if action == ACTIONS[2] else 0
    process = SERVER.Process(target=learn, args=(str(folder), cache, devices, tasks, last, theirs))
    process.start()
    theirs.close()
    try:
        ours.recv()
        if action and not last:
            process.join(when)
            if process.exitcode is None:
                os.kill(process.pid or 0, getattr(signal, action))
        process.join()
        steps = ours.recv() if process.exitcode == 0 else 0
    except EOFError:  # killed before it had begun
        process.join()
        steps = 0
    return Ended(process.exitcode or 0, steps)


def stopped_again_and_again(
    folder: pathlib.Path, cache: str, devices: int, tasks: int, stops: dict[str, int], seed: int, until: float
) -> dict[str, Any]:
    """Returns what was found after runs of so many devices were stopped that often, in each way.

    After the time `until` none is stopped any more.
    """
    rng, whole = np.random.default_rng(seed), folder / "whole"
    started(folder / "warm", cache, devices, tasks)  # compiles
    began = time.perf_counter()
    steps = started(whole, cache, devices, tasks).steps
    seconds, wanted = time.perf_counter() - began, held(whole)
    done, left = dict.fromkeys(ACTIONS, 0), dict(stops)
    lost = repairs = wrong = finished = starts = saved = 0
    run, before, under_way = folder / "0", dict[str, tuple[str, str]](), False
    while any(left.values()) or under_way:
        if time.monotonic() > until:  # what is under way comes to its end
            left = dict.fromkeys(ACTIONS, 0)
        action = str(rng.choice([one for one in ACTIONS if left[one]] or [""]))
        when = rng.integers(1, max(2, steps // 3)) if action == ACTIONS[2] else rng.uniform(0, seconds / 2)
        ended = started(run, cache, devices, tasks, action, float(when))
        starts += 1
        under_way = ended.status != 0
        after = held(run)
        lost += any(after.get(name) != one for name, one in before.items())
        lost += any(wanted.get(name) != one for name, one in after.items())
        if ended.status == 0:
            finished += 1
            wrong += after != wanted or any((run / "saves").glob("*"))
            shutil.rmtree(run)
            run, before = folder / str(finished), {}
            continue
        if ended.status == (PREEMPTED if action == "SIGTERM" else -signal.SIGKILL):
            done[action] += 1
            left[action] = max(0, left[action] - 1)
            print(devices, done, "of", stops, f"{finished} runs ended", flush=True)
            saved += any(run.glob("saves/*/*/*/_CHECKPOINT_METADATA"))
        else:
            repairs += 1
        before = after or before
        if repairs > 3:
            break
    return {
        "stops": done,
        "starts": starts,
        "found_saved": saved,
        "runs_that_came_to_their_end": finished,
        "that_ended_otherwise": wrong,
        "lost": lost,
        "torn": 0,  # `held` ends it at the first
        "repairs": repairs,
        "seconds_undisturbed": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 8], help="fake devices, in turn")
    parser.add_argument("--kills", type=int, default=100, help="kills, with each number of devices")
    parser.add_argument("--terms", type=int, default=12, help="SIGTERM, with each number of devices")
    parser.add_argument("--tasks", type=int, default=len(TASKS), help="of a run, at most so many")
    parser.add_argument("--minutes", type=float, default=600, help="after which no more are stopped")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, help="the JSON file to write")
    arguments = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    SERVER.set_forkserver_preload(["torture_runs", "orbax.checkpoint", "grain", "scipy.stats"])
    writes = arguments.kills // 2
    stops = dict(zip(ACTIONS, (arguments.terms, arguments.kills - writes, writes), strict=True))
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for devices in arguments.devices:
            folder = pathlib.Path(name) / str(devices)
            folder.mkdir()
            cache = str(pathlib.Path(name) / "cache")
            until = time.monotonic() + 60 * arguments.minutes / len(arguments.devices)
            found[str(devices)] = stopped_again_and_again(
                folder, cache, devices, arguments.tasks, stops, arguments.seed, until
            )
            print(json.dumps({devices: found[str(devices)]}), flush=True)
    result = {
        "by_devices": found,
        "settings": {
            "kills": arguments.kills,
            "terms": arguments.terms,
            "tasks": arguments.tasks,
            "seed": arguments.seed,
        },
        **provenance(),
    }
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    if any(one[key] for one in found.values() for key in ("lost", "repairs", "that_ended_otherwise")):
        raise SystemExit(f"a run's promise is broken: {found}")


if __name__ == "__main__":
    main()
