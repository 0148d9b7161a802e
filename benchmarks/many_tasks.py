"""A thousand tasks from one backbone: seconds to open `cwps.TaskBank`, bytes, and answers to the bit.

    python benchmarks/many_tasks.py --out benchmarks/results/many_tasks_cpu.json

Synthetic tasks are stored without training, each with rows of its own in about `--active` of every layer's
channels (from half of it to one and a half, drawn for each layer and task), in `--bits` bits, by another
process. resident_over_copies: bytes on the device over as many full copies. memory_over_resident: how much
this process's memory (without files that it maps) has grown, over those bytes. stored_over_copies: payload
bytes of the tasks over as many full copies. All three are counted, so that they have no quartiles.
`seconds` and `processor_seconds` (those of all threads, which a busy machine does not change much): "open"
the pool and the bank; the "first_answer", "first_drop" and "first_add", with their compilations; medians of
"swap", of "answer" (one picture), of "drop" and of "add", for random tasks, and what the slowest one took.
`compilations`: of all of these after the first ones.
"""

import argparse
import collections
import dataclasses
import multiprocessing
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measurement import parse, parser, publish
from synthetic import CountCompilations, moved
from turn import CLASSES, random_variables

import cwps_jax as cwps
from cwps_jax.bank.entries import whole_tree
from cwps_jax.core.channels import Layout
from cwps_jax.core.coding import NORMAL_STEPS, Codes
from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.methods import Cwps
from cwps_jax.methods.channels import store_channels
from cwps_jax.methods.method import Stored
from cwps_jax.models import create
from cwps_jax.modules import channel_layout
from cwps_jax.store.pool import PRETRAINED, Pool

QUICK = {"backbone": "resnet8", "size": 32, "tasks": 12, "repeats": 4, "checked": 2}
CHANNELS = ("masks", "owner", "row")  # what says whose channels a task has


def made_pool(folder: pathlib.Path, arguments: argparse.Namespace) -> Pool:
    """Stores the tasks, with what `TaskBank` wants to know of each; their codes are drawn, not rounded."""
    shape = (arguments.size, arguments.size, 3)
    model, example = create(arguments.backbone, CLASSES), jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    layout = channel_layout(model, example)
    variables = random_variables(model, example, np.random.default_rng(0))
    pool = Pool.create(folder, variables, layout, backbone=arguments.backbone)
    models, before = pool.pooled().models, pool.effective(PRETRAINED)
    child = moved(before, np.random.default_rng(0))
    other = {name: tree for name, tree in child.items() if name != "params"}
    learned = {
        "class_names": None,
        "input": {"shape": shape, "dtype": "float32"},
        "preparation": {"pixel_mean": None, "pixel_deviation": None},
        "dtype": "float32",
    }
    closed = unflatten({layer.path: np.zeros(layer.gate_shape, bool) for layer in layout.layers})
    alike = pool.coded(store_channels(layout, child["params"], other, closed, {}, models), arguments.bits)
    for number in range(arguments.tasks):
        rng = np.random.default_rng(number)
        gates = task_gates(layout, arguments.active, rng)
        stored = store_channels(layout, before["params"], other, gates, {}, models)
        own = {path: drawn(leaf, rng) for path, leaf in flatten(alike.own).items()}
        own |= {path: leaf for path, leaf in flatten(stored.own).items() if path.split("/")[0] in CHANNELS}
        rows = {path: drawn(few_bits(leaf, arguments.bits), rng) for path, leaf in stored.rows.items()}
        told = Stored(unflatten(own), rows)
        pool.add_stored(f"task{number}", Cwps(), told, {"classes": CLASSES, "learned_with": learned})
    return pool


def task_gates(layout: Layout, active: float, rng: np.random.Generator) -> dict[str, Any]:
    """Returns gates of which a share is open that is drawn for each layer, around `active`."""
    gates = {}
    for layer in layout.layers:
        count = round(active * rng.uniform(0.5, 1.5) * layer.channels)
        gates[layer.path] = (rng.permutation(layer.channels) < count).reshape(layer.gate_shape)
    return unflatten(gates)


def few_bits(rows: np.ndarray, bits: int) -> Codes:
    """Returns codes in the form of rows, (rows, fan-in), with steps of a change of a tenth."""
    steps = np.full(len(rows), 0.1 * NORMAL_STEPS[bits] * rows.std(), jnp.bfloat16)
    return Codes(bits, rows.shape, np.zeros((len(rows), bits, -(-rows.shape[1] // 8)), np.uint8), steps)


def drawn(leaf: Any, rng: np.random.Generator) -> Any:
    """Returns a leaf in few bits with other codes, or, of one in float32, with noise of a tenth."""
    if isinstance(leaf, Codes):
        most = np.iinfo(leaf.codes.dtype).max
        codes = rng.integers(most, size=leaf.codes.shape, dtype=leaf.codes.dtype, endpoint=True)
        return dataclasses.replace(leaf, codes=codes)
    return moved({"leaf": leaf}, rng)["leaf"] if leaf.dtype == np.float32 else leaf


def own_memory() -> int:
    """Returns the bytes of memory that this process holds, without files that it maps (Linux)."""
    status = pathlib.Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(line.split()[1]) * 1024


def opened(folder: pathlib.Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Opens the bank in this process and measures it."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, arguments.size, arguments.size, 3)).astype(np.float32)
    jax.block_until_ready(jnp.zeros(1))
    before = own_memory()
    turns: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)

    def timed(what: str, call: Callable[[], Any]) -> Any:
        began = time.perf_counter(), time.process_time()
        result = jax.block_until_ready(call())
        turns[what].append((time.perf_counter() - began[0], time.process_time() - began[1]))
        return result

    pool = Pool.open(folder)
    bank = timed("open", lambda: cwps.TaskBank(Pool.open(folder)))
    ways, made = bank._ways, bank._ways.costs.holding
    resident, grown = bank.resident["device"], own_memory() - before
    names = list(map(str, rng.permutation(pool.tasks)))
    timed("first_answer", lambda: bank.answer(image, names[0], "swapped"))
    timed("first_drop", lambda: bank.drop(names[0]))
    timed("first_add", lambda: bank.add(names[0]))
    with CountCompilations() as counted:
        for number in range(arguments.repeats):
            task = names[(1 + number) % len(names)]
            timed("swap", lambda task=task: made(lambda: ways.swap(bank.served(task).loaded)))
            timed("answer", lambda task=task: bank.answer(image, task, "swapped"))
            timed("drop", lambda task=task: bank.drop(task))
            timed("add", lambda task=task: bank.add(task))
    for task in names[: arguments.checked]:
        right = whole_tree(bank.served(task), ways.classes)  # as the pool gives it, but for its head's width
        entry = bank.served(task)
        for way, of in ((ways.merge, entry), (ways.swap, entry.loaded)):
            variables = made(lambda way=way, of=of: way(of))
            if not jax.tree.all(jax.tree.map(np.array_equal, jax.device_get(variables), right)):
                raise SystemExit(f"{task}: the bank's network is not the pool's")
        alone = made(lambda entry=entry, right=right: ways.forward(entry, right, image))[0, :CLASSES]
        if not np.array_equal(bank.answer(image, task, "swapped")[0], alone):
            raise SystemExit(f"{task}: the bank's answer is not the network's of the pool")
    found: dict[str, dict[str, float]] = {"seconds": {}, "processor_seconds": {}}
    for name, pairs in turns.items():
        for seconds, values in zip(found.values(), zip(*pairs, strict=True), strict=True):
            seconds[name] = statistics.median(values)
            if len(values) > 1:
                seconds[f"slowest_{name}"] = max(values)
    copies = len(pool) * sum(leaf.nbytes for leaf in jax.tree.leaves(pool.effective(names[0])))
    return {
        "ratios": {
            "resident_over_copies": resident / copies,
            "memory_over_resident": grown / resident,
            "stored_over_copies": sum(pool.version(task).bytes for task in pool.tasks) / copies,
        },
        "quartiles": {},
        **found,
        "resident_bytes": resident,
        "compilations": counted.count,
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns what was found; the pool is made by another process, whose memory is not the bank's."""
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or pathlib.Path(name) / "pool"
        if not (folder / "index.json").exists():
            maker = multiprocessing.get_context("spawn").Process(target=made_pool, args=(folder, arguments))
            maker.start()
            maker.join()
        if len(Pool.open(folder)) != arguments.tasks:
            raise SystemExit(f"{folder}: another pool than these flags ask for; remove it")
        return opened(folder, arguments)


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--backbone", default="resnet50")
    made.add_argument("--size", type=int, default=224, help="pixels of an image's side")
    made.add_argument("--tasks", type=int, default=1000, help="that the bank serves")
    made.add_argument("--active", type=float, default=0.145, help="share of a task's own channels")
    made.add_argument("--bits", type=int, default=4, help="of a stored weight: the config's row_bits")
    made.add_argument(
        "--checked", type=int, default=8, help="tasks that are compared with the pool to the bit"
    )
    made.add_argument("--folder", type=pathlib.Path, help="where the pool stays; one that is there is opened")
    arguments = parse(made, QUICK)
    publish("many_tasks", measure(arguments), arguments)


if __name__ == "__main__":
    main()
