"""Many tasks from one backbone: memory, swaps, and mixed batches, by `cwps.TaskBank`'s own parts.

    python benchmarks/serve.py --out benchmarks/results/serve_cpu.json

resident_*: bytes on the device of a bank of `--tasks` tasks that each store `--active` of all channels, over
as many full copies: in float32, in 4 bits, and entropy-coded. They are counted, not timed. swap_over_forward:
seconds to write a task into the working copy over a forward pass of one picture with it; copy_over_swap: a
copy of all of a network over the swap. A request is one picture each of `--batch` tasks, drawn as *distinct*
ones, *uniform*ly, *skewed* (Zipf) or all *identical*: loop_over_mixed_*, a loop over its tasks, each with its
network on the device already, over one mixed batch; swaps_over_mixed_*, the same by swaps in one working
copy. mixed_throughput_*: a plain model's batch of as many pictures over the mixed batch.
"""

import argparse
import collections
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measurement import interleaved, medians, model_parser, parse, publish, ratios, seconds_of
from synthetic import CountCompilations, Setting, stored_pool

from cwps_jax.bank import Bank
from cwps_jax.store.pool import Pool

QUICK = {"backbone": "resnet8", "size": 32, "tasks": 8, "repeats": 4, "switches": 50}
MIXES = ("distinct", "uniform", "skewed", "identical")
STORED = {"float32": (32, 0.0), "4_bits": (4, 0.0), "entropy_coded": (0, 0.01)}  # row_bits and byte_budget


def drawn(mix: str, tasks: tuple[str, ...], count: int) -> list[str]:
    """Returns the tasks of a request's pictures."""
    rng = np.random.default_rng(0)
    if mix == "identical":
        return [tasks[0]] * count
    if mix == "distinct":
        return [tasks[number % len(tasks)] for number in range(count)]
    shares = 1 / np.arange(1, len(tasks) + 1) ** (1.0 if mix == "skewed" else 0.0)
    return [str(task) for task in rng.choice(tasks, count, p=shares / shares.sum())]


def whole_bytes(pool: Pool) -> int:
    """Returns the bytes of one task's full copy."""
    return sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(pool.effective(pool.tasks[0])))


def turns_of(bank: Bank, pool: Pool, batch: int, images: np.ndarray) -> dict[str, Callable[[], float]]:
    """Returns what is timed."""
    ways, made = bank._ways, bank._ways.costs.holding
    asked = {mix: drawn(mix, pool.tasks, batch) for mix in MIXES}
    entries = {task: bank.served(task) for some in asked.values() for task in some}
    entries |= {task: bank.served(task) for task in pool.tasks[:2]}
    trees = {
        task: jax.device_put(made(lambda entry=entry: ways._merged(entry.loaded)))
        for task, entry in entries.items()
    }
    copied = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
    first, second = pool.tasks[:2]
    turn = iter(range(10**9))

    def forward(task: str, pixels: np.ndarray) -> jax.Array:
        return made(lambda: ways.forward(entries[task], trees[task], pixels))

    def swap() -> None:
        task = entries[(first, second)[next(turn) % 2]].loaded
        jax.block_until_ready(made(lambda: ways.swap(task, anew=True)))  # whatever another turn left there

    def loop(mix: str) -> None:
        counts = collections.Counter(asked[mix])
        jax.block_until_ready([forward(task, images[:count]) for task, count in counts.items()])

    calls: dict[str, Callable[[], Any]] = {
        "swap": swap,
        "copy": lambda: jax.block_until_ready(copied(trees[first])),
        "forward": lambda: jax.block_until_ready(forward(first, images[:1])),
        "model": lambda: jax.block_until_ready(forward(first, images)),
    }
    for mix in MIXES:
        calls[f"loop_{mix}"] = lambda mix=mix: loop(mix)
        calls[f"swaps_{mix}"] = lambda mix=mix: bank.answer(images, asked[mix], "swapped")
        calls[f"mixed_{mix}"] = lambda mix=mix: bank.answer(images, asked[mix], "mixed")
    return {name: lambda call=call: seconds_of(call) for name, call in calls.items()}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns ratios, seconds, and what was found on the way."""
    made, rng = Setting.of(arguments), np.random.default_rng(0)
    resident: dict[str, float] = {}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (bits, byte_budget) in STORED.items():
            pool = stored_pool(
                pathlib.Path(folder) / name, made.variables, made.layout, arguments.tasks, arguments.active,
                bits=bits, byte_budget=byte_budget,
            )  # fmt: skip
            bank = Bank(pool, model=made.model)
            copies = arguments.tasks * whole_bytes(pool)
            resident[f"resident_{name}"] = bank.resident["device"] / copies
            if bits != 32:
                continue
            seconds = interleaved(turns_of(bank, pool, arguments.batch, made.images), arguments.repeats)
            pairs = {"swap_over_forward": ("swap", "forward"), "copy_over_swap": ("copy", "swap")}
            for mix in MIXES:
                pairs[f"loop_over_mixed_{mix}"] = (f"loop_{mix}", f"mixed_{mix}")
                pairs[f"swaps_over_mixed_{mix}"] = (f"swaps_{mix}", f"mixed_{mix}")
                pairs[f"mixed_throughput_{mix}"] = ("model", f"mixed_{mix}")
            found = {**ratios(seconds, pairs), "seconds": medians(seconds)}
            found["way"] = {mix: _way(bank, pool, mix, made.images) for mix in MIXES}
            with CountCompilations() as counted:
                for task in rng.choice(pool.tasks, arguments.switches):
                    bank.answer(made.images[:1], str(task), "swapped")
            found["compilations_of_switches"] = counted.count
    found["ratios"] |= resident
    return found


def _way(bank: Bank, pool: Pool, mix: str, images: np.ndarray) -> str:
    tasks = drawn(mix, pool.tasks, len(images))
    return bank._way(collections.Counter(map(bank.served, tasks)), images[:1])


def main(flags: Sequence[str] | None = None) -> None:
    made = model_parser(__doc__, backbone="resnet18", size=96, batch=8)
    made.add_argument("--tasks", type=int, default=100, help="that the bank serves")
    made.add_argument("--active", type=float, default=0.1, help="share of a task's own channels")
    made.add_argument("--switches", type=int, default=1000, help="random ones that must compile nothing")
    arguments = parse(made, QUICK, flags)
    publish("serve", measure(arguments), arguments)


if __name__ == "__main__":
    main()
