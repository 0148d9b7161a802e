"""Serving 1, 4, 16 and 64 tasks by a bank, and by what is done without one: memory and throughput.

    python benchmarks/serve_curves.py --out benchmarks/results/serve_curves_cpu.json

Four ways to answer a request of `--batch` pictures, whose tasks are drawn as *distinct* ones, *uniform*ly,
*skewed* (Zipf) or all *identical*: "bank", `TaskBank`'s own choice; "one after another", a bank that swaps
each task into its working copy; "full copies", every task's network on the device, a task at a time; "from
disk", one network on the device, each task's weights read from a safetensors file that the system has in its
cache. Throughput is in shares of one plain model's that has as many pictures in one batch; memory is counted,
in full copies, after all requests of a kind. Both are ratios. Where others use the machine, too, `--clock
processor` on one core (`taskset -c 1`) counts the seconds that the core was this process's.
"""

import argparse
import collections
import functools
import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from measurement import interleaved, model_parser, parse, publish, ratios
from safetensors.numpy import load_file, save_file
from serve import MIXES, drawn, whole_bytes
from synthetic import Setting, stored_pool

from cwps_jax.bank import Bank
from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.store.pool import Pool

QUICK = {"backbone": "resnet8", "size": 32, "batch": 4, "tasks": [1, 4], "repeats": 2}
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
WAYS = ("bank", "one after another", "full copies", "from disk")


class Served:
    """The first tasks of a pool, by every way.

    Args:
        made: the backbone.
        pool: the tasks.
        tasks: of them.
        copies: {task: its variables on the device}.
        files: {task: its variables as a file}.
    """

    def __init__(
        self,
        made: Setting,
        pool: Pool,
        tasks: Sequence[str],
        copies: dict[str, Any],
        files: dict[str, pathlib.Path],
    ) -> None:
        self.tasks, self._copies, self._files, self._images = tuple(tasks), copies, files, made.images
        self.banks = {way: Bank(pool, tasks, model=made.model) for way in WAYS[:2]}
        self._forward = jax.jit(made.forward)

    def answer(self, way: str, mix: str) -> list[np.ndarray]:
        """Returns the logits of a request, each task's pictures after another's where they are not mixed."""
        asked = drawn(mix, self.tasks, len(self._images))
        if way in self.banks:
            return self.banks[way].answer(self._images, asked, "swapped" if way == WAYS[1] else "")
        rows: dict[int, np.ndarray] = {}
        for task in dict.fromkeys(asked):
            numbers = [number for number, other in enumerate(asked) if other == task]
            if way == "full copies":
                variables = self._copies[task]
            else:
                variables = jax.device_put(unflatten(load_file(self._files[task])))
            logits = np.asarray(self._forward(variables, self._images[numbers]))
            rows.update(zip(numbers, logits, strict=True))
        return [rows[number] for number in range(len(asked))]

    def check(self) -> None:
        """Raises unless all ways answer alike."""
        for mix in MIXES:
            wanted = np.stack(self.answer("full copies", mix))
            for way in WAYS:
                got = np.stack(self.answer(way, mix))
                np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max(), err_msg=way)

    def memory(self, copy: int) -> dict[str, float]:
        """Returns the bytes of each way on the device, in full copies.

        Args:
            copy: bytes of one.
        """
        banks = {way: bank.resident["device"] / copy for way, bank in self.banks.items()}
        return {**banks, "full copies": float(len(self.tasks)), "from disk": 1.0}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the curves, and the ratios at their ends."""
    made, clock = Setting.of(arguments), CLOCKS[arguments.clock]

    def timed(call: Callable[[], Any]) -> float:
        began = clock()
        call()
        return clock() - began

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        most = max(arguments.tasks)
        pool = stored_pool(folder / "pool", made.variables, made.layout, most, arguments.active)
        copies, files = {}, {task: folder / f"{task}.safetensors" for task in pool.tasks}
        for task, file in files.items():
            tree = pool.effective(task)
            save_file({path: np.asarray(leaf) for path, leaf in flatten(tree).items()}, file)
            copies[task] = jax.device_put(tree)
        served = {
            count: Served(made, pool, pool.tasks[:count], copies, files) for count in sorted(arguments.tasks)
        }
        forward, one = jax.jit(made.forward), copies[pool.tasks[0]]
        turns: dict[Any, Callable[[], float]] = {
            "model": lambda: timed(lambda: np.asarray(forward(one, made.images)))
        }
        for count, of_count in served.items():
            of_count.check()
            for mix in MIXES:
                for way in WAYS:
                    turns[count, mix, way] = functools.partial(
                        timed, functools.partial(of_count.answer, way, mix)
                    )
        seconds = interleaved(turns, arguments.repeats)
        copy = whole_bytes(pool)
        memory = {count: of_count.memory(copy) for count, of_count in served.items()}
        chosen = {
            (count, mix): _chosen(on, mix, made.images) for count, on in served.items() for mix in MIXES
        }
    shares = ratios(seconds, {key: ("model", key) for key in seconds if key != "model"})
    ends: dict[str, Any] = {
        f"bank_over_{way}_{mix}".replace(" ", "_"): ((most, mix, way), (most, mix, "bank"))
        for mix in MIXES
        for way in WAYS[1:]
    }
    found = ratios(seconds, ends)
    found["ratios"]["bank_memory_over_full_copies"] = memory[most]["bank"] / most
    rows = [
        {
            "tasks": count, "mix": mix, "way": way, "chosen": chosen[count, mix] if way == "bank" else "",
            "memory": memory[count][way], "throughput": shares["ratios"][count, mix, way],
            "quartiles": shares["quartiles"][count, mix, way],
        }
        for count in served for mix in MIXES for way in WAYS
    ]  # fmt: skip
    return {**found, "curves": rows}


def _chosen(served: Served, mix: str, images: np.ndarray) -> str:
    bank = served.banks["bank"]
    counts = collections.Counter(map(bank.served, drawn(mix, served.tasks, len(images))))
    return bank._way(counts, images[:1])


def main(flags: Sequence[str] | None = None) -> None:
    made = model_parser(__doc__, backbone="resnet18", size=96, batch=8)
    made.add_argument("--tasks", type=int, nargs="+", default=[1, 4, 16, 64], help="that are served")
    made.add_argument("--active", type=float, default=0.1, help="share of a task's own channels")
    made.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="by which turns are timed")
    arguments = parse(made, QUICK, flags)
    publish("serve_curves", measure(arguments), arguments)


if __name__ == "__main__":
    main()
