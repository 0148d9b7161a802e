"""A whole task by CWPS against fine-tuning it with equal epochs, from the second task on: wall time.

    python benchmarks/task.py --out benchmarks/results/task_cpu.json

Warm-up, search, soft and hard stage, and whatever is compiled between them, over the same epochs of
fine-tuning; what the first task compiled is there for both. A task of random images is learned again and
again, and each time both are taken in turn. Nothing is stored: the pool holds one task throughout. Norm
statistics are estimated again from one batch, where tasks of many more steps have 20.
"""

import argparse
import pathlib
import tempfile
from typing import Any

from measurement import interleaved, medians, model_parser, parse, publish, ratios
from synthetic import CountCompilations, learner

METHODS = ("finetune", "cwps")
QUICK = {"backbone": "resnet8", "size": 32, "batch": 8, "steps": 4, "epochs": 4, "repeats": 3}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the ratio, and how many programs were compiled in the turns that count."""
    items = arguments.steps * arguments.batch
    with tempfile.TemporaryDirectory() as folder:
        learn = learner(pathlib.Path(folder), arguments)
        learn("first", items, 10)
        turns = {
            method: lambda method=method: learn(method, items, 10, method=method, store=False)
            for method in METHODS
        }
        for turn in turns.values():
            turn()
        with CountCompilations() as counted:
            seconds = interleaved(turns, arguments.repeats)
    return {
        **ratios(seconds, {"task_over_finetune": ("cwps", "finetune")}),
        "seconds": medians(seconds),
        "compilations": counted.count,
    }


def main() -> None:
    made = model_parser(__doc__, backbone="resnet34", size=96, batch=16)
    made.add_argument("--steps", type=int, default=8, help="steps an epoch")
    made.add_argument("--epochs", type=int, default=10, help="2 warm-up, 2 soft and 6 hard ones")
    arguments = parse(made, QUICK)
    publish("task", measure(arguments), arguments)


if __name__ == "__main__":
    main()
