"""Forward pass and training step of a backbone in JAX and in PyTorch, on one machine, in turns.

    python benchmarks/backbone.py --out benchmarks/results/backbone_cpu.json
    python benchmarks/backbone.py --batch 256 --out benchmarks/results/backbone_gpu.json      (on a GPU)

It needs torch and timm beside cwps_jax, as in the environment that `make parity` makes. Each framework has a
process of its own, and they take turns call by call, so that a machine whose speed drifts is fair to both.
PyTorch runs channels-last, with autocast, eager or through torch.compile, whichever is faster. The training
step is the library's own fine-tuning step (SGD with momentum, cross-entropy, norm statistics); PyTorch's too.

Ratios are medians of JAX's seconds over PyTorch's, turn by turn: below 1 JAX is faster; speed_over_pytorch is
the other way about. Transposes are counted in the program that we hand to XLA and in what XLA made of it for
this device.
"""

import argparse
import pathlib
import re
import sys
import time
from collections.abc import Callable
from typing import Any

from measurement import interleaved, medians, model_parser, parse, provenance, publish, ratios
from workers import Calls, both, serve

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

RATIOS = {"forward": "forward_over_torch", "train": "finetune_over_torch"}
CALLS = tuple(RATIOS)
QUICK = {"backbone": "resnet18", "size": 32, "batch": 4, "repeats": 4, "torch_compile": False}
# Bytes that a training step of 256 images moves when convolutions and norms are not fused, over an H200's
# memory bandwidth.
BOUND = {"device": "NVIDIA H200", "backbone": "resnet50", "batch": 256, "size": 224, "train_seconds": 0.0182}


def jax_calls(arguments: argparse.Namespace) -> tuple[Calls, dict[str, Any]]:
    """Returns JAX's two calls, compiled, and what was found on the way."""
    import jax
    from turn import Turn

    from cwps_jax.models import create
    from cwps_jax.train.step import apply_model

    turn = Turn("finetune", arguments, arguments.size, arguments.batch)
    began = time.perf_counter()
    lowered = turn.step.lower(turn.state, turn.frozen, turn.plan, turn.batch)
    program = turn.step.prepare(turn.state, turn.frozen, turn.plan, turn.batch)
    train_compile = time.perf_counter() - began
    model = create(arguments.backbone, 10, dtype=jax.numpy.dtype(arguments.dtype))
    params, other = jax.tree.map(lambda leaf: leaf.copy(), (turn.state.own["params"], turn.state.other))

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


def torch_calls(arguments: argparse.Namespace) -> tuple[Calls, dict[str, Any]]:
    """Returns PyTorch's two calls, warmed up, and what was found on the way."""
    import pytorch

    side = pytorch.Side(arguments)
    model = side.model()

    def calls_of(prepare: Callable[[Any], Any]) -> Calls:
        prepared = prepare(model)
        return {"forward": side.forward(prepared), "train": side.train(prepared, weight_decay=1e-4)}

    return pytorch.fastest(calls_of, arguments.torch_compile)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns ratios, seconds, and what they were measured on."""
    workers = both(__file__)
    seconds: dict[str, list[float]] = {}
    for call in CALLS:
        turns = {
            f"{framework} {call}": lambda worker=worker, call=call: worker.run(call)
            for framework, worker in workers.items()
        }
        seconds |= interleaved(turns, arguments.repeats)
    for worker in workers.values():
        worker.stop()
    speeds = ratios(seconds, {call: (f"torch {call}", f"jax {call}") for call in CALLS})
    over = ratios(seconds, {RATIOS[call]: (f"jax {call}", f"torch {call}") for call in CALLS})
    found = medians(seconds)
    in_seconds = {call: {name: found[f"{name} {call}"] for name in workers} for call in CALLS}
    result = {
        "ratios": over["ratios"],
        "speed_over_pytorch": speeds["ratios"],
        "quartiles": {**over["quartiles"], **speeds["quartiles"]},
        "seconds": in_seconds,
        "images_per_second": {
            call: {name: arguments.batch / value for name, value in measured.items()}
            for call, measured in in_seconds.items()
        },
        "pytorch": workers["torch"].told,
        **workers["jax"].told,
    }
    if BOUND["device"] in result["device"] and all(
        getattr(arguments, key) == BOUND[key] for key in ("backbone", "batch", "size")
    ):
        result["ratios"]["finetune_over_bandwidth_bound"] = (
            in_seconds["train"]["jax"] / BOUND["train_seconds"]
        )
    return result


def main() -> None:
    made = model_parser(__doc__, backbone="resnet50", size=224, batch=8, dtype="bfloat16")
    made.add_argument("--torch-compile", action=argparse.BooleanOptionalAction, default=True)
    made.add_argument("--worker", choices=("jax", "torch"), help=argparse.SUPPRESS)
    arguments = parse(made, QUICK)
    if arguments.worker:
        serve(*(jax_calls if arguments.worker == "jax" else torch_calls)(arguments))
        return
    result = measure(arguments)
    publish("backbone", result, arguments)
    for call in CALLS:
        ours, theirs = (result["images_per_second"][call][name] for name in ("jax", "torch"))
        print(
            f"{call:8} {result['speed_over_pytorch'][call]:.3f}x PyTorch's speed "
            f"({ours:.1f} against {theirs:.1f} images/s), compiled in {result['compile_seconds'][call]:.1f} s"
        )
    print(f"transposes of activations and kernels: {result['transposes']}")


if __name__ == "__main__":
    main()
