"""Runs that are stopped at random moments, and have to end as if nothing had happened, to the bit.

    python scripts/torture_runs.py --out benchmarks/results/torture_runs.json

A run pre-trains a model and learns several tasks, by two methods each. First it runs undisturbed. Then the
same run is started again and again, and stopped each time: asked to end (SIGTERM), killed (SIGKILL) at a
random moment, or killed just before a random one of the steps in which it writes files. After each stop the
pool has to be whole and to have every task that was committed before, the same to the bit; the next start has
to go on without a repair; and a run that came to its end has to have the pool of the undisturbed one.
Of several processes one is stopped, any of them, and the others have to end by themselves.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import tempfile
import time
from typing import Any

import numpy as np
from stopped_run import ACTIONS, PREEMPTED, SERVER, TASKS, Topology, started
from torture import provenance

from cwps_jax.store import Pool


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


def stopped_again_and_again(
    folder: pathlib.Path, cache: str, devices: str, tasks: int, stops: dict[str, int], seed: int, until: float
) -> dict[str, Any]:
    """Returns what was found after runs of such a topology were stopped that often, in each way.

    After the time `until` none is stopped any more.
    """
    rng, whole, topology = np.random.default_rng(seed), folder / "whole", Topology.of(devices)
    started(folder / "warm", cache, topology, tasks)  # compiles
    began = time.perf_counter()
    steps = started(whole, cache, topology, tasks).steps
    seconds, wanted = time.perf_counter() - began, held(whole)
    done, left = dict.fromkeys(ACTIONS, 0), dict(stops)
    lost = repairs = wrong = finished = starts = saved = 0
    run, before, under_way = folder / "0", dict[str, tuple[str, str]](), False
    while any(left.values()) or under_way:
        if time.monotonic() > until:  # what is under way comes to its end
            left = dict.fromkeys(ACTIONS, 0)
        action = str(rng.choice([one for one in ACTIONS if left[one]] or [""]))
        when = rng.integers(1, max(2, steps // 3)) if action == ACTIONS[2] else rng.uniform(0, seconds / 2)
        victim = int(rng.integers(topology.processes)) if topology.processes > 1 else 0
        ended = started(run, cache, topology, tasks, action, float(when), victim)
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
    parser.add_argument(
        "--devices", nargs="+", default=["1", "8", "2x4"], help="fake devices, or processes x devices"
    )
    parser.add_argument("--kills", type=int, default=100, help="kills, with each number of devices")
    parser.add_argument("--terms", type=int, default=12, help="SIGTERM, with each number of devices")
    parser.add_argument("--tasks", type=int, default=len(TASKS), help="of a run, at most so many")
    parser.add_argument("--minutes", type=float, default=600, help="after which no more are stopped")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, help="the JSON file to write")
    arguments = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    SERVER.set_forkserver_preload(["stopped_run", "orbax.checkpoint", "grain", "scipy.stats"])
    writes = arguments.kills // 2
    stops = dict(zip(ACTIONS, (arguments.terms, arguments.kills - writes, writes), strict=True))
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for devices in arguments.devices:
            folder = pathlib.Path(name) / devices
            folder.mkdir()
            cache = str(pathlib.Path(name) / "cache")
            until = time.monotonic() + 60 * arguments.minutes / len(arguments.devices)
            found[devices] = stopped_again_and_again(
                folder, cache, devices, arguments.tasks, stops, arguments.seed, until
            )
            print(json.dumps({devices: found[devices]}), flush=True)
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
