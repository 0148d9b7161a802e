"""Soft and hard CWPS steps against a plain fine-tuning step: time, FLOPs and peak memory, as ratios.

    python benchmarks/step.py --backbone resnet18 --out benchmarks/results/step_cpu.json

The three steps take turns in one process, so that a machine whose speed drifts is fair to all of them. Time
is the median of the ratios turn by turn. FLOPs and memory are XLA's own analysis of the compiled steps, at a
size of their own, since it need not be run: --cost-size and --cost-batch. With --device-memory, on an
accelerator, memory is the device's peak, each step measured in a process of its own.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cwps_jax import methods
from cwps_jax.config import TrainConfig
from cwps_jax.core import masks
from cwps_jax.core.trees import select
from cwps_jax.methods.method import Frozen
from cwps_jax.models import create
from cwps_jax.modules import channel_layout
from cwps_jax.parallel import Compiled, Parallel
from cwps_jax.train.objectives import accuracy, cross_entropy
from cwps_jax.train.optimizer import child_optimizer, score_optimizer
from cwps_jax.train.state import make_plan, start_state
from cwps_jax.train.step import make_step

KINDS = ("finetune", "soft", "hard")
ACTIVE = 0.3  # share of open channels in the hard step


class Turn:
    """One kind of step with its own state, ready to be timed."""

    def __init__(self, kind: str, arguments: argparse.Namespace, size: int, batch: int) -> None:
        model = create(arguments.backbone, 10, dtype=jnp.dtype(arguments.dtype))
        shape = (batch, size, size, 3)
        example = jax.ShapeDtypeStruct((1, *shape[1:]), jnp.float32)
        layout = channel_layout(model, example)
        config = TrainConfig(method="finetune" if kind == "finetune" else "cwps", weight_decay=1e-4)
        stage = {one.name: one for one in methods.create(config).stages}[kind]
        rng = np.random.default_rng(0)
        variables = jax.tree.map(
            lambda leaf: rng.normal(0, 0.05, leaf.shape).astype(leaf.dtype),
            jax.eval_shape(model.init, jax.random.key(0), example),
        )
        statistics_ = jax.tree.map(np.ones_like, variables["batch_stats"])
        optimizer = child_optimizer(config, layout).init(variables["params"])
        state = start_state(variables["params"], {"batch_stats": statistics_}, optimizer, config)
        frozen = Frozen(gates=masks.all_gates(layout, True))
        if kind != "finetune":
            parent = select(variables["params"], layout.layer_paths)
            gates = jax.tree.map(
                lambda gate: jnp.asarray(rng.random(gate.shape) < ACTIVE), masks.all_gates(layout, True)
            )
            frozen = Frozen(parent=parent, gates=gates)
        if kind == "soft":
            scores = masks.init_scores(layout)
            optimizer = score_optimizer(config).init(scores)
            state = dataclasses.replace(state, masks=scores, score_optimizer=optimizer)
        plan = make_plan(config, stage, first_epoch=0, epochs=30, steps_per_epoch=100)
        self.parallel = Parallel()
        self.state, self.frozen, self.plan = self.parallel.replicate((state, frozen, plan))
        self.batch = self.parallel.split(
            {
                "image": rng.normal(size=shape).astype(np.float32),
                "label": rng.integers(0, 10, batch).astype(np.int32),
            }
        )
        step = make_step(stage, model, layout, config, cross_entropy, accuracy)
        self.step: Compiled = self.parallel.compile(step, donate=(0,))

    def prepare(self) -> Compiled:
        """Compiles the step without running it, and returns it."""
        self.step.prepare(self.state, self.frozen, self.plan, self.batch)
        return self.step

    def run(self) -> float:
        """Takes one step and returns its seconds."""
        began = time.perf_counter()
        self.state, metrics = self.step(self.state, self.frozen, self.plan, self.batch)
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - began


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns ratios, absolute figures, and what they were measured on."""
    peaks = {kind: _device_peak(kind, arguments) for kind in KINDS} if arguments.device_memory else {}
    costs = {
        kind: Turn(kind, arguments, arguments.cost_size, arguments.cost_batch).prepare() for kind in KINDS
    }
    turns = {kind: Turn(kind, arguments, arguments.size, arguments.batch) for kind in KINDS}
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for turn in turns.values():
        turn.run()
    for repeat in range(arguments.repeats):
        # The order rotates: no step always comes after the same other one.
        for kind in KINDS[repeat % 3 :] + KINDS[: repeat % 3]:
            seconds[kind].append(turns[kind].run())
    flops = {kind: step.flops or 0.0 for kind, step in costs.items()}
    memory = peaks or {kind: step.peak_bytes or 0 for kind, step in costs.items()}
    ratios, spread = {}, {}
    for kind in ("soft", "hard"):
        paired = [a / b for a, b in zip(seconds[kind], seconds["finetune"], strict=True)]
        quartiles = statistics.quantiles(paired, n=4)
        ratios[f"{kind}_time"] = statistics.median(paired)
        spread[f"{kind}_time"] = [quartiles[0], quartiles[2]]
        ratios[f"{kind}_flops"] = flops[kind] / flops["finetune"]
        ratios[f"{kind}_memory"] = memory[kind] / memory["finetune"]
    return {
        "benchmark": "step",
        "ratios": ratios,
        "quartiles": spread,
        "seconds": {kind: statistics.median(values) for kind, values in seconds.items()},
        "flops": flops,
        "memory_bytes": memory,
        "settings": {
            key: getattr(arguments, key)
            for key in ("backbone", "size", "batch", "cost_size", "cost_batch", "dtype", "repeats")
        },
        **provenance(),
    }


def provenance() -> dict[str, Any]:
    """Returns the device, the versions and the commit that figures belong to."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    packages = ("jax", "jaxlib", "flax", "optax")
    return {
        "device": f"{os.cpu_count()}-core {platform.machine()} CPU" if on_cpu else device.device_kind,
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
        },
        "commit": commit,
    }


def _device_peak(kind: str, arguments: argparse.Namespace) -> int:
    command = [sys.executable, __file__, "--peak-of", kind, "--dtype", arguments.dtype]
    for key in ("backbone", "cost_size", "cost_batch"):
        command += [f"--{key.replace('_', '-')}", str(getattr(arguments, key))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=64, help="pixels of an image's side")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--cost-size", type=int, default=224, help="the same for FLOPs and memory")
    parser.add_argument("--cost-batch", type=int, default=64)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="32 px, batch 8, 8 repeats")
    parser.add_argument("--device-memory", action="store_true", help="the device's peak; for GPU and TPU")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--peak-of", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.size, arguments.batch, arguments.repeats = 32, 8, 8
    if arguments.peak_of:
        turn = Turn(arguments.peak_of, arguments, arguments.cost_size, arguments.cost_batch)
        turn.run()
        turn.run()
        stats = jax.devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" not in stats:
            sys.exit("this device does not tell its peak memory; leave --device-memory out")
        print(stats["peak_bytes_in_use"])
        return
    result = measure(arguments)
    for name, value in result["ratios"].items():
        print(f"{name:12} {value:.4f}")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
