"""Two writers at once, and writers killed at random moments: what the pool promises, tried again and again.

    python scripts/torture.py --out benchmarks/results/torture.json

First two processes add tasks of their own to one pool at random moments, each by a handle that it opened
before; every task has to be there, the same to the bit. Then one process after the other adds, removes with
rehoming, renames or compacts, and is killed (SIGKILL) at a random moment of that, or just before a random one
of the steps in which it writes. After each kill the pool has to be what it was before, or what it was to
become, to the bit, and the next process goes on without a repair.
"""

import argparse
import dataclasses
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from cwps_jax.core.channels import Layout, layout_from_axes
from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.errors import CwpsError
from cwps_jax.search.composite import Source
from cwps_jax.store import Pool

SHAPES = {"a/kernel": (3, 3, 2, 6), "a/bias": (6,), "b/kernel": (24, 8), "head/kernel": (8, 3)}
AXES = {"a/kernel": (-1,), "a/bias": (-1,), "b/kernel": (-1,)}
SERVER = multiprocessing.get_context("forkserver")  # each process is born with Orbax imported
OPERATIONS = ("add", "remove", "rename", "compact")
TASKS = 4  # that the pool has at least, where something is done to one
State = dict[str, str]  # a version's name: the SHA-256 of its variables


def drawn(seed: int) -> dict[str, Any]:
    """Returns a model's random parameters, flat."""
    rng = np.random.default_rng(seed)
    return {path: rng.standard_normal(shape).astype(np.float32) for path, shape in SHAPES.items()}


def layout() -> Layout:
    """Returns the layout of the model that is stored."""
    shared = layout_from_axes(unflatten({path: np.zeros(SHAPES[path]) for path in AXES}), AXES)
    return dataclasses.replace(shared, head=(("head/kernel", SHAPES["head/kernel"]),))


def new_pool(folder: pathlib.Path) -> Pool:
    """Returns a pool of a pre-trained model alone."""
    return Pool.create(folder, {"params": unflatten(drawn(0))}, layout(), record={})


def made(pool: Pool, name: str, seed: int) -> tuple[Any, ...]:
    """Returns a task's parameters, gates and sources: closed channels are of random other tasks."""
    rng, params = np.random.default_rng(seed), drawn(seed)
    names = pool.pooled(without=name).names
    of = [flatten(pool.effective(one)["params"]) for one in names]
    gates, sources = {}, {}
    for layer in pool.layout.layers:
        gate = rng.random(layer.channels) < 0.4
        model = rng.integers(len(names), size=layer.channels)
        for leaf in layer.leaves:
            for channel in np.flatnonzero(~gate):
                params[leaf][..., channel] = of[model[channel]][leaf][..., channel]
        gates[layer.path] = gate.reshape(layer.gate_shape)
        sources[layer.path] = Source(model, np.arange(layer.channels))
    return unflatten(params), unflatten(gates), sources, names


def add(pool: Pool, name: str, seed: int) -> None:
    """Adds the task of a seed."""
    params, gates, sources, names = made(pool, name, seed)
    pool.add(name, params, {}, gates, sources, names, {"seed": seed})


def sha256(params: Any) -> str:
    """Returns the SHA-256 of parameters."""
    found = hashlib.sha256()
    for path, leaf in flatten(params).items():
        found.update(path.encode() + np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()


def state(folder: pathlib.Path) -> State:
    """Returns what a pool holds, as a process that opens it now sees it; it has to be undamaged."""
    pool = Pool.open(folder)
    damage = pool.verify()
    if damage:
        raise SystemExit(f"{folder}: torn: {damage}")
    return {one.name: sha256(pool.effective(one.name)["params"]) for one in pool.index.versions}


def write_many(folder: str, first: int, count: int, told: Connection) -> None:
    """Adds tasks by one handle at random moments, and tells what each has to be; in a process of its own."""
    pool, rng, wanted = Pool.open(folder), np.random.default_rng(first), {}
    told.send("ready")
    told.recv()
    for seed in range(first, first + count):
        params = made(pool, f"task{seed}", seed)[0]
        time.sleep(0.02 * rng.random())
        add(pool, f"task{seed}", seed)
        wanted[f"task{seed}@1"] = sha256(params)
    try:
        add(pool, "same", first)
        wanted["same"] = "stored"
    except CwpsError:
        wanted["same"] = "refused"
    told.send(wanted)


def two_writers(folder: pathlib.Path, count: int) -> dict[str, int]:
    """Returns how many tasks two processes added, and how many of them were lost."""
    new_pool(folder)
    pairs = [SERVER.Pipe() for _ in range(2)]
    writers = [
        SERVER.Process(target=write_many, args=(str(folder), 1 + 10_000 * place, count, theirs))
        for place, (_, theirs) in enumerate(pairs)
    ]
    for writer in writers:
        writer.start()
    for ours, _ in pairs:
        ours.recv()
    for ours, _ in pairs:
        ours.send("go")
    told = [ours.recv() for ours, _ in pairs]
    for writer in writers:
        writer.join()
    same = sorted(one.pop("same") for one in told)
    found = state(folder)
    if found.pop("same@1") and same == ["stored", "stored"]:
        # The slower had written after the other, and so had seen it: a second version.
        found.pop("same@2")
    wanted = told[0] | told[1]
    lost = sum(found.get(name) != one for name, one in wanted.items())
    return {"added": len(wanted), "lost": lost, "not_wanted": len(found.keys() - wanted.keys())}


class Steps:
    """Counts what a process does to files, and kills it just before one of these steps.

    Args:
        last: the number of that step, from 1; 0 for none.
    """

    def __init__(self, last: int) -> None:
        self.count = 0
        self._last = last
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            self.count += 1
            if self.count == self._last:
                os.kill(os.getpid(), signal.SIGKILL)


def operate(folder: str, operation: str, name: str, number: int, last: int, told: Connection) -> None:
    """Does one thing to a pool, and says when it begins and what it took; in a process of its own."""
    pool = Pool.open(folder)
    does: dict[str, Callable[[], object]] = {
        "add": lambda: add(pool, name, number),
        "remove": lambda: pool.remove(name, rehome=True),
        "rename": lambda: pool.rename(name, f"task{number}"),
        "compact": lambda: pool.compact(older=True),
    }
    told.send("begins")
    begun, steps = time.perf_counter(), Steps(last)
    does[operation]()
    told.send((time.perf_counter() - begun, steps.count))


def allowed(pool: Pool, before: State, operation: str, name: str, number: int) -> State:
    """Returns what a pool has to hold after something was done to it."""
    if operation == "add":
        version = 1 + max((one.version for one in pool.index.versions if one.task == name), default=0)
        return {**before, f"{name}@{version}": sha256(made(pool, name, number)[0])}
    elif operation == "remove":
        return {one: its for one, its in before.items() if one != pool.version(name).name}
    elif operation == "rename":
        return {one.replace(f"{name}@", f"task{number}@"): its for one, its in before.items()}
    needed = more = {pool.version(task).id for task in pool}
    while more:
        more = {used for one in more for used in owners(pool, one)} - needed
        needed = needed | more
    return {one.name: before[one.name] for one in pool.index.versions if one.id in needed}


def owners(pool: Pool, number: int) -> set[int]:
    """Returns the numbers of the versions whose rows one borrows."""
    found = pool.ownership(pool.index.by_id[number].name)
    return {int(one) for owner, _ in found.values() for one in owner} - {0}


def killed(folder: pathlib.Path, kills: int, seed: int) -> dict[str, Any]:
    """Returns what was found after writers were killed, at random moments of what they did."""
    pool, rng, took = new_pool(folder), np.random.default_rng(seed), {}
    counts = {kind: dict.fromkeys(OPERATIONS, 0) for kind in ("killed", "before", "after", "ended")}
    number = lost = repairs = 0
    while sum(counts["killed"].values()) < kills:
        pool = Pool.open(folder)
        while len(pool) < TASKS:
            number += 1
            add(pool, f"task{number}", number)
        number += 1
        operation = min(OPERATIONS, key=lambda one: counts["killed"][one])
        name = str(rng.choice(pool.tasks))
        if operation == "add" and rng.random() < 0.6:
            name = f"task{number}"
        if operation == "compact":  # so that there is an older version to be removed
            for seed in (number, 10_000 + number):
                add(pool, f"task{number}", seed)
        before = state(folder)
        after = allowed(pool, before, operation, name, number)
        # As long as the last of its kind that ended. Moments and steps that write are drawn in turn.
        seconds, steps = took.get(operation, (0.0, 0))
        last = int(rng.integers(1, steps + 1)) if steps and number % 2 else 0
        ours, theirs = SERVER.Pipe()
        process = SERVER.Process(target=operate, args=(str(folder), operation, name, number, last, theirs))
        process.start()
        theirs.close()
        ours.recv()
        if operation in took and not last:
            time.sleep(1.2 * seconds * rng.random())
            process.kill()
        process.join()
        if process.exitcode == 0:
            took[operation] = ours.recv()
        repairs += process.exitcode not in (0, -signal.SIGKILL)  # it could not go on from what was left
        counts["ended" if process.exitcode == 0 else "killed"][operation] += 1
        found = state(folder)
        lost += found not in (before, after)
        counts["before" if found == before else "after"][operation] += 1
    Pool.open(folder).compact()
    named = {one.folder for one in Pool.open(folder).index.versions}
    left = {one.name for one in (folder / "tasks").iterdir()} - named
    return {
        "kills": counts["killed"],
        "ended_before_the_kill": sum(counts["ended"].values()),
        "was_as_before": counts["before"],
        "was_done": counts["after"],
        "lost": lost,
        "torn": 0,  # `state` ends the run at the first
        "repairs": repairs,
        "left_after_compact": len(left),
    }


def provenance() -> dict[str, Any]:
    """Returns what a result was measured with: versions, and the commit."""
    here = str(pathlib.Path(__file__).parent)
    commit = ["git", "-C", here, "describe", "--always", "--dirty", "--exclude", "*"]
    return {
        "versions": {
            "python": platform.python_version(),
            **{one: importlib.metadata.version(one) for one in ("orbax-checkpoint", "numpy", "jax")},
        },
        "commit": subprocess.run(commit, capture_output=True, text=True, check=False).stdout.strip(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adds", type=int, default=50, help="tasks that each of two writers adds")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, help="the JSON file to write")
    arguments = parser.parse_args()
    SERVER.set_forkserver_preload(["cwps_jax.store.pool", "orbax.checkpoint"])
    with tempfile.TemporaryDirectory() as name:
        writers = two_writers(pathlib.Path(name) / "writers", arguments.adds)
        kills = killed(pathlib.Path(name) / "kills", arguments.kills, arguments.seed)
    result = {
        "two_writers": writers,
        "kills": kills,
        "settings": {"adds": arguments.adds, "kills": arguments.kills, "seed": arguments.seed},
        **provenance(),
    }
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    bad = {key: one[key] for one in (writers, kills) for key in ("lost", "torn", "repairs") if one.get(key)}
    if bad or writers["not_wanted"] or kills["left_after_compact"]:
        raise SystemExit(f"the pool's promise is broken: {result}")


if __name__ == "__main__":
    main()
