"""What a save of a training costs: steps with one against steps without, and how long a step waits for it.

    python benchmarks/saving.py --out benchmarks/results/saving_cpu.json

A soft step's state is saved: child, scores, optimizer, norms, and the own tree with which the warm-up ended.
The steps take turns; those with a save begin with it and go on until all of it is on the disk, so that they
bear the copy to the host and whatever the writing takes from them. The share of a run's time is that at the
default of config.save_minutes. On a CPU the writing takes the cores that the steps need.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from typing import Any

import jax
from measurement import interleaved, medians, model_parser, parse, publish, ratios
from turn import Turn

from cwps_jax.config import RunConfig
from cwps_jax.train.saves import Saves, Saving

MINUTES = RunConfig.save_minutes
QUICK = {"backbone": "resnet8", "size": 32, "batch": 8, "steps": 4, "repeats": 4}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the ratios, the seconds of a turn and those that a step waits."""
    turn = Turn("soft", arguments, arguments.size, arguments.batch)
    ended = ({"params": turn.point.state.own["params"]},)
    waited: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        saves = Saves(Saving(folder, MINUTES), "task", {}, {}, lambda before, now: "")
        place = iter(range(1, 1_000_000))

        def with_save() -> float:
            began = time.perf_counter()
            state = turn.parallel.fetch(turn.state)
            saves.save(
                turn.course, dataclasses.replace(turn.point, steps=next(place), state=state, ended=ended)
            )
            waited.append(time.perf_counter() - began)
            turn.run(arguments.steps)
            saves.close()
            return time.perf_counter() - began

        without = lambda: turn.run(arguments.steps) * arguments.steps
        seconds = interleaved({"with": with_save, "without": without}, arguments.repeats)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves((ended, turn.state)))
    found = ratios(seconds, {"turn_with_save_over_without": ("with", "without")})
    middle = medians(seconds)
    wait, step = statistics.median(waited), middle["without"] / arguments.steps
    found["ratios"]["run_over_one_without_saves"] = 1 + (middle["with"] - middle["without"]) / (60 * MINUTES)
    found["ratios"]["step_that_waits_over_others"] = 1 + wait / step
    return {**found, "seconds": {**middle, "wait": wait, "step": step}, "bytes": size}


def main() -> None:
    made = model_parser(__doc__, backbone="resnet50", size=224, batch=16)
    made.add_argument("--steps", type=int, default=2, help="steps a turn")
    arguments = parse(made, QUICK)
    publish("saving", measure(arguments), arguments)


if __name__ == "__main__":
    main()
