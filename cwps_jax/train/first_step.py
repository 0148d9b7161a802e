"""The changes to a stage's state before its first step: norm statistics, and the start of averages."""

import dataclasses

from cwps_jax.core.trees import Tree
from cwps_jax.parallel import Parallel
from cwps_jax.train.course import Course
from cwps_jax.train.epochs import mean_statistics
from cwps_jax.train.norms import estimated
from cwps_jax.train.programs import Programs
from cwps_jax.train.state import TrainState


def before_first_step(
    programs: Programs, parallel: Parallel, course: Course, number: int, state: TrainState, held: Tree
) -> TrainState:
    """Returns a stage's state with norm statistics estimated again and with averages, if it has them.

    Args:
        programs: the compiled functions of the model.
        parallel: how batches are spread over devices.
        course, number: the stage.
        state, held: its first state, and the frozen arrays that its steps read, on the devices.
    """
    if course.stages[number].reestimates_norms and "batch_stats" in course.other:
        state = _reestimated(programs, parallel, course, number, state, held)
    if course.averages(number):  # fetched and placed: a donated state must not hold a buffer twice
        start = parallel.fetch({"own": state.own, "other": state.other})
        state = dataclasses.replace(state, **parallel.place({"average": start}))
    return state


def _reestimated(
    programs: Programs, parallel: Parallel, course: Course, number: int, state: TrainState, held: Tree
) -> TrainState:
    """Returns the state with norm statistics estimated again over single batches of training data."""
    stage, start = course.stages[number], course.first_epoch(number) * course.steps
    statistics = programs.statistics(stage, course.method, course.split.preparation)

    def with_statistics(tree: Tree) -> TrainState:
        placed = parallel.place({"other": {"batch_stats": tree}})
        return dataclasses.replace(state, other={**state.other, **placed["other"]})

    def after(tree: Tree) -> Tree:
        begun = with_statistics(tree)
        found = mean_statistics(statistics, begun, held, course.split, course.config, parallel, start)
        return found["batch_stats"]

    now = parallel.fetch(state.other["batch_stats"])
    return with_statistics(estimated(after, now, course.network.batch_norms))
