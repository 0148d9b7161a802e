"""Several byte budgets from one training, which is shared up to the stage in which they differ."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from cwps_jax.core.entropy import BY_BUDGET
from cwps_jax.core.trees import Tree
from cwps_jax.data.split import Arrays, Split
from cwps_jax.methods.method import Pooled, Stage, unchanged
from cwps_jax.settings import TrainConfig
from cwps_jax.train.records import Observe, Trained
from cwps_jax.train.saves import Saves
from cwps_jax.train.trainer import Trainer

HARD = "hard"  # the name of the stage in which channels are opened


def hardened(
    trainer: Trainer,
    variables: Tree,
    split: Split | Arrays,
    config: TrainConfig,
    pool: Pooled,
    observe: Observe,
    saves: Saves | None,
) -> list[tuple[TrainConfig, Trained]]:
    """Returns the trained network for each of the config's budgets, with its config, the largest first.

    The stages before the one in which budgets differ are trained once, for the largest budget. They differ in
    the hard stage, where a smaller one opens those channels that have the highest scores; or, if they set the
    bits, in the rounded epochs. Only the shared stages are saved. A method that has no such stage is trained
    for the largest budget.

    Args:
        trainer, variables, split, config, pool, observe, saves: see `Trainer.train`; the largest budget's
            epochs are observed.
    """
    each = config.by_budget()
    courses = [trainer.course(variables, split, one, pool) for one in each]
    first = courses[0]
    shared = _first_that_differs(first.stages, config)
    if len(each) == 1 or shared is None:
        return [(each[0], trainer.train(variables, split, each[0], pool, observe, saves))]
    with contextlib.closing(saves) if saves else contextlib.nullcontext():
        point = (saves and saves.newest(first)) or first.beginning()
        while point.stage < shared:
            point = trainer.run_stage(first, point, observe, saves)
            if saves and saves.wanted(between_stages=True):
                saves.save(first, point)
    found = [trainer.go_on(course, point, observe) for course in courses[:1]]
    found += [trainer.go_on(course, point) for course in courses[1:]]
    once = point.so_far.seconds
    seconds = once + sum(one.so_far.seconds - once for one in found)
    all_of_it = [
        dataclasses.replace(one, so_far=dataclasses.replace(one.so_far, seconds=seconds)) for one in found
    ]
    return list(zip(each, all_of_it, strict=True))


def _first_that_differs(stages: Sequence[Stage], config: TrainConfig) -> int | None:
    """Returns the number of the first stage that depends on the byte budget; None if there is none."""
    rounded = config.row_bits == BY_BUDGET
    depends = [stage.seen is not unchanged if rounded else stage.name == HARD for stage in stages]
    return depends.index(True) if any(depends) else None


def smallest(curve: Sequence[Mapping[str, Any]], tolerance: float) -> int:
    """Returns the index of the smallest budget whose validation accuracy is within a tolerance of the best.

    Args:
        curve: "byte_budget" and "validation_accuracy" of each budget.
        tolerance: the largest allowed difference, in [0, 1].
    """
    least = max(one["validation_accuracy"] for one in curve) - tolerance
    good = [at for at, one in enumerate(curve) if one["validation_accuracy"] >= least]
    return min(good, key=lambda at: curve[at]["byte_budget"])
