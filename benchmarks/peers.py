"""CWPS here against TAPS in PyTorch, and fine-tuning in both: a training step of each, in turns.

    python benchmarks/peers.py --out benchmarks/results/peers_cpu_float32.json      (`make peers`)

It needs torch and timm beside cwps_jax, as in the environment that `make peers` makes. Each framework has a
process of its own, and all calls take turns, so that a machine whose speed drifts is fair to all. What
PyTorch's side computes is stated in pytorch.py.

finetune_over_torch: seconds of our fine-tuning step over PyTorch's. cwps_over_finetune_jax and
taps_over_finetune_torch: what each method adds to its own framework's fine-tuning. cwps_over_taps: our soft
step over TAPS's step; hard_over_taps: our hard step, with 30% of every layer's channels open.
"""

import argparse
import copy
import functools
import pathlib
import sys
from typing import Any

from measurement import interleaved, medians, model_parser, parse, provenance, publish, ratios
from workers import Calls, both, serve

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

QUICK = {"backbone": "resnet18", "size": 32, "batch": 4, "repeats": 4, "torch_compile": False}
CALLS = {"jax": ("finetune", "soft", "hard"), "torch": ("finetune", "taps")}
PAIRS = {
    "finetune_over_torch": ("jax finetune", "torch finetune"),
    "cwps_over_finetune_jax": ("jax soft", "jax finetune"),
    "taps_over_finetune_torch": ("torch taps", "torch finetune"),
    "cwps_over_taps": ("jax soft", "torch taps"),
    "hard_over_taps": ("jax hard", "torch taps"),
}


def jax_calls(arguments: argparse.Namespace) -> tuple[Calls, dict[str, Any]]:
    """Returns a step of each stage, compiled, and where they run."""
    from turn import Turn

    turns = {stage: Turn(stage, arguments, arguments.size, arguments.batch) for stage in CALLS["jax"]}
    peaks = {stage: turn.prepare().peak_bytes for stage, turn in turns.items()}
    calls = {stage: functools.partial(turn.run, arguments.steps) for stage, turn in turns.items()}
    return calls, {"peak_bytes": peaks, **provenance()}


def torch_calls(arguments: argparse.Namespace) -> tuple[Calls, dict[str, Any]]:
    """Returns a step of fine-tuning and of TAPS, and what was found on the way."""
    import pytorch

    side = pytorch.Side(arguments, arguments.steps)
    plain = side.model()
    shared = copy.deepcopy(plain)
    scores = pytorch.with_taps(shared, shared.get_classifier())
    side.check_same(plain, shared)
    return pytorch.fastest(
        lambda prepare: {
            "finetune": side.train(prepare(plain), weight_decay=1e-4),
            "taps": side.train(prepare(shared), scores),
        },
        arguments.torch_compile,
    )


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the ratios, the seconds behind them, and what both sides told."""
    workers = both(__file__)
    turns = {
        f"{framework} {call}": lambda worker=workers[framework], call=call: worker.run(call) / arguments.steps
        for framework, calls in CALLS.items()
        for call in calls
    }
    seconds = interleaved(turns, arguments.repeats)
    for worker in workers.values():
        worker.stop()
    return {
        **ratios(seconds, PAIRS),
        "seconds": medians(seconds),
        "pytorch": workers["torch"].told,
        **workers["jax"].told,
    }


def main() -> None:
    made = model_parser(__doc__, backbone="resnet34", size=224, batch=16)
    made.add_argument("--steps", type=int, default=1, help="steps a turn, more on a GPU that runs behind")
    made.add_argument("--torch-compile", action=argparse.BooleanOptionalAction, default=True)
    made.add_argument("--worker", choices=("jax", "torch"), help=argparse.SUPPRESS)
    arguments = parse(made, QUICK)
    if arguments.worker:
        serve(*(jax_calls if arguments.worker == "jax" else torch_calls)(arguments))
        return
    publish("peers", measure(arguments), arguments)


if __name__ == "__main__":
    main()
