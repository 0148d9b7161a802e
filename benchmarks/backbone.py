"""Forward pass and training step of a backbone in JAX and in PyTorch, on one machine, in turns.

    python benchmarks/backbone.py --out benchmarks/results/backbone_cpu.json
    python benchmarks/backbone.py --batch 256 --out benchmarks/results/backbone_gpu.json      (on a GPU)

It needs torch and timm beside cwps_jax, as in the environment that `make parity` makes. Each framework has a
process of its own, and they take turns call by call, so that a machine whose speed drifts is fair to both.
PyTorch runs channels-last, with autocast, and through torch.compile where that works. The training step is
the library's own fine-tuning step (SGD with momentum, cross-entropy, norm statistics); so does PyTorch's.

Ratios are medians of PyTorch's seconds over JAX's, turn by turn: above 1 JAX is faster. Transposes are
counted in the program that we hand to XLA and in what XLA made of it for this device.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

CALLS = ("forward", "train")
# Bytes that a training step of 256 images moves when convolutions and norms are not fused, over an H200's
# memory bandwidth.
BOUND = {"device": "NVIDIA H200", "backbone": "resnet50", "batch": 256, "size": 224, "train_seconds": 0.0182}


def jax_calls(arguments: argparse.Namespace) -> tuple[dict[str, Callable[[], Any]], dict[str, Any]]:
    """Returns JAX's two calls, compiled, and what was found on the way."""
    import jax
    from step import Turn, provenance

    from cwps_jax.models import create
    from cwps_jax.train.step import apply_model

    turn = Turn("finetune", arguments, arguments.size, arguments.batch)
    began = time.perf_counter()
    lowered = turn.step.lower(turn.state, turn.frozen, turn.plan, turn.batch)
    program = turn.step.prepare(turn.state, turn.frozen, turn.plan, turn.batch)
    train_compile = time.perf_counter() - began
    model = create(arguments.backbone, 10, dtype=jax.numpy.dtype(arguments.dtype))
    params, other = jax.tree.map(lambda leaf: leaf.copy(), (turn.state.child, turn.state.other))

    def forward(params, other, images):
        return apply_model(model, params, other, images, train=False)

    began = time.perf_counter()
    compiled = jax.jit(forward).lower(params, other, turn.batch["image"]).compile()
    forward_compile = time.perf_counter() - began
    told = {
        "compile_seconds": {"forward": forward_compile, "train": train_compile},
        "transposes": {
            "handed to XLA": _activation_transposes(lowered.as_text(), r"stablehlo\.transpose"),
            "made by XLA": _activation_transposes(program.as_text(), r" transpose\("),
        },
        "peak_bytes": turn.step.peak_bytes,
        **provenance(),
    }
    calls = {
        "forward": lambda: jax.block_until_ready(compiled(params, other, turn.batch["image"])),
        "train": turn.run,
    }
    return calls, told


def _activation_transposes(program: str, pattern: str) -> int:
    """Counts the transposes of arrays of four axes: activations and convolution kernels."""
    four_axes = re.compile(r"tensor<(\d+x){4}[a-z]|\[\d+,\d+,\d+,\d+\]")
    return sum(bool(four_axes.search(line)) for line in program.splitlines() if re.search(pattern, line))


def torch_calls(arguments: argparse.Namespace) -> tuple[dict[str, Callable[[], Any]], dict[str, Any]]:
    """Returns PyTorch's two calls, warmed up, and what was found on the way."""
    import torch

    from parity.timm_alone import timm

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    model = timm.create_model(arguments.backbone, num_classes=10)
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    shape = (arguments.batch, 3, arguments.size, arguments.size)
    images = torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, shape[:1], device=device)
    half = arguments.dtype == "bfloat16"

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def calls_of(model: Any) -> dict[str, Callable[[], Any]]:
        def forward() -> None:
            model.eval()
            with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=half):
                model(images)
            wait()

        def train() -> None:
            model.train()
            with torch.autocast(device, torch.bfloat16, enabled=half):
                loss = torch.nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            wait()

        return {"forward": forward, "train": train}

    def warm_up(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
        seconds = {}
        for name in CALLS:
            began = time.perf_counter()
            calls[name]()
            seconds[name] = time.perf_counter() - began
            calls[name]()
        return seconds

    calls, compiled, why = calls_of(model), False, "not asked for"
    if arguments.torch_compile:
        try:
            compiled_calls = calls_of(torch.compile(model))
            seconds = warm_up(compiled_calls)
            calls, compiled, why = compiled_calls, True, ""
        except (
            Exception
        ) as error:  # whatever its compiler raises: the eager model is measured, and it is said
            why = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    if not compiled:
        seconds = warm_up(calls)
    told = {"torch": torch.__version__, "compiled": compiled, "first_call_seconds": seconds}
    return calls, told if compiled else {**told, "not_compiled_because": why}


class Worker:
    """One framework in a process of its own, which runs one call when it is told to."""

    def __init__(self, framework: str, flags: list[str]) -> None:
        command = [sys.executable, __file__, *flags, "--worker", framework]
        # Both share one GPU: JAX must not take all of its memory at the start.
        environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.told = self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"a worker stopped with code {self._process.wait()}")

    def run(self, call: str) -> float:
        """Returns the seconds of one call."""
        assert self._process.stdin
        print(call, file=self._process.stdin, flush=True)
        return self._answer()["seconds"]

    def stop(self) -> None:
        self._process.communicate("")


def serve(calls: dict[str, Callable[[], Any]], told: dict[str, Any]) -> None:
    """Answers on standard output: first what was found, then the seconds of each call that is asked for."""
    print(json.dumps(told), flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        calls[line.strip()]()
        print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)


def measure(arguments: argparse.Namespace, flags: list[str]) -> dict[str, Any]:
    """Returns ratios, seconds, and what they were measured on."""
    workers = {framework: Worker(framework, flags) for framework in ("jax", "torch")}
    seconds: dict[str, dict[str, list[float]]] = {call: {name: [] for name in workers} for call in CALLS}
    for call in CALLS:
        for worker in workers.values():
            worker.run(call)
        for _ in range(arguments.repeats):
            for framework, worker in workers.items():
                seconds[call][framework].append(worker.run(call))
    for worker in workers.values():
        worker.stop()
    ratios, quartiles = {}, {}
    for call, measured in seconds.items():
        paired = [theirs / ours for theirs, ours in zip(measured["torch"], measured["jax"], strict=True)]
        low, middle, high = statistics.quantiles(paired, n=4)
        ratios[call], quartiles[call] = middle, [low, high]
    medians = {
        call: {name: statistics.median(values) for name, values in measured.items()}
        for call, measured in seconds.items()
    }
    result = {
        "benchmark": "backbone",
        "speed_over_pytorch": ratios,
        "quartiles": quartiles,
        "seconds": medians,
        "images_per_second": {
            call: {name: arguments.batch / value for name, value in measured.items()}
            for call, measured in medians.items()
        },
        "settings": {
            key: getattr(arguments, key) for key in ("backbone", "size", "batch", "dtype", "repeats")
        },
        "pytorch": workers["torch"].told,
        **workers["jax"].told,
    }
    settings = result["settings"]
    if BOUND["device"] in result["device"] and all(
        settings[key] == BOUND[key] for key in ("backbone", "batch", "size")
    ):
        result["share_of_bandwidth_bound"] = BOUND["train_seconds"] / medians["train"]["jax"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--size", type=int, default=224, help="pixels of an image's side")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--no-torch-compile", dest="torch_compile", action="store_false")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--worker", choices=("jax", "torch"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        serve(*(jax_calls if arguments.worker == "jax" else torch_calls)(arguments))
        return
    result = measure(arguments, sys.argv[1:])
    for call in CALLS:
        ours, theirs = (result["images_per_second"][call][name] for name in ("jax", "torch"))
        print(
            f"{call:8} {result['speed_over_pytorch'][call]:.3f}x PyTorch's speed "
            f"({ours:.1f} against {theirs:.1f} images/s), compiled in {result['compile_seconds'][call]:.1f} s"
        )
    print(f"transposes of activations and kernels: {result['transposes']}")
    if "share_of_bandwidth_bound" in result:
        print(f"training step at {result['share_of_bandwidth_bound']:.2f} of the memory-bandwidth bound")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
