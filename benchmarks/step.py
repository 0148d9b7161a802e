"""Steps of CWPS, TAPS and LoRA against a plain fine-tuning step: time, FLOPs and peak memory, as ratios.

    python benchmarks/step.py --out benchmarks/results/step_cpu.json

The steps take turns in one process, so that a machine whose speed drifts is fair to all of them. Time is the
median of the ratios turn by turn. FLOPs and memory are XLA's own analysis of the compiled steps, at a size of
their own, since they need not be run: --cost-size and --cost-batch; --repeats 0 gives these alone. With
--device-memory, on an accelerator, memory is the device's peak, each step measured in a process of its own.
The hard step has 30% of every layer's channels open; hard.py compares its form to a dense one.
"""

import argparse
import functools
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from measurement import interleaved, medians, parse, parser, publish, ratios
from turn import Turn

Make = Callable[[argparse.Namespace, int, int], Turn]  # arguments, size, batch

BASELINE = "finetune"
KINDS: dict[str, Make] = {
    stage: functools.partial(Turn, stage) for stage in (BASELINE, "soft", "hard", "taps", "lora")
}
QUICK = {"backbone": "resnet18", "size": 32, "batch": 8, "repeats": 8, "cost_size": 32, "cost_batch": 8}


def measure(kinds: Mapping[str, Make], arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns each kind's ratios to the baseline, and absolute figures."""
    others = [kind for kind in kinds if kind != BASELINE]
    peaks = {kind: _device_peak(kind) for kind in kinds} if arguments.device_memory else {}
    size = arguments.size, arguments.batch
    cost_size = arguments.cost_size or arguments.size, arguments.cost_batch or arguments.batch
    found: dict[str, Any] = {"ratios": {}, "quartiles": {}}
    costs = {}
    turns = {}
    if arguments.repeats:
        turns = {kind: make(arguments, *size) for kind, make in kinds.items()}
        seconds = interleaved(
            {kind: functools.partial(turn.run, arguments.steps) for kind, turn in turns.items()},
            arguments.repeats,
        )
        found = ratios(seconds, {f"{kind}_time": (kind, BASELINE) for kind in others})
        found["seconds"] = medians(seconds)
    for kind, make in kinds.items():
        turn = turns[kind] if turns and cost_size == size else make(arguments, *cost_size)
        step = turn.prepare()
        costs[kind] = {
            "flops": step.flops or 0.0,
            "memory": peaks.get(kind, step.peak_bytes or 0),
            "optimizer_bytes": turn.channel_optimizer_bytes(),
        }
    for kind in others:
        for cost, value in costs[kind].items():
            if costs[BASELINE][cost]:  # a device may not tell
                found["ratios"][f"{kind}_{cost}"] = value / costs[BASELINE][cost]
    for cost in ("flops", "memory", "optimizer_bytes"):
        found["memory_bytes" if cost == "memory" else cost] = {kind: costs[kind][cost] for kind in kinds}
    return found


def _device_peak(kind: str) -> int:
    command = [sys.executable, *sys.argv, "--peak-of", kind]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)  # it has said why
    return int(done.stdout.split()[-1])


def print_peak(kinds: Mapping[str, Make], arguments: argparse.Namespace) -> None:
    """Prints the device's peak memory after two steps of one kind."""
    size, batch = arguments.cost_size or arguments.size, arguments.cost_batch or arguments.batch
    turn = kinds[arguments.peak_of](arguments, size, batch)
    turn.run()
    turn.run()
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" not in stats:
        sys.exit("this device does not tell its peak memory; leave --device-memory out")
    print(stats["peak_bytes_in_use"])


def run(
    benchmark: str,
    kinds: Mapping[str, Make],
    description: str | None,
    defaults: Mapping[str, Any],
    flags: Sequence[str] | None = None,
) -> None:
    """Parses the flags of a benchmark of steps, and measures and publishes it."""
    made = parser(description)
    made.add_argument("--backbone", default="resnet34")
    made.add_argument("--size", type=int, help="pixels of an image's side")
    made.add_argument("--batch", type=int)
    made.add_argument("--steps", type=int, default=1, help="steps a turn, more on a GPU that runs behind")
    made.add_argument("--cost-size", type=int, default=224, help="the same for FLOPs and memory; 0: as timed")
    made.add_argument("--cost-batch", type=int, help="0: as timed")
    made.add_argument("--dtype", default="float32")
    made.add_argument("--device-memory", action="store_true", help="the device's peak; for GPU and TPU")
    made.add_argument("--peak-of", choices=tuple(kinds), help=argparse.SUPPRESS)
    made.set_defaults(**defaults)
    arguments = parse(made, QUICK, flags)
    if arguments.peak_of:
        print_peak(kinds, arguments)
    else:
        publish(benchmark, measure(kinds, arguments), arguments)


if __name__ == "__main__":
    run("step", KINDS, __doc__, {"size": 224, "batch": 16, "cost_batch": 64})
