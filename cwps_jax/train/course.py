"""`Course`, everything that stays the same while a task is trained, and `Point`, a state of its training."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from cwps_jax.core.trees import Tree
from cwps_jax.data.split import Split
from cwps_jax.methods.method import Begun, Method, Moment, Stage
from cwps_jax.methods.network import Network
from cwps_jax.methods.pooled import Pooled
from cwps_jax.settings import TrainConfig
from cwps_jax.train.records import NO_STEPS, SoFar
from cwps_jax.train.state import TrainState, begun_state, start_state


@dataclasses.dataclass(frozen=True)
class Point:
    """A state of a task's training between two steps, from which it can be resumed; arrays are on the host.

    In memory several trainings may continue from one point, such as several hard stages from one soft stage,
    by courses that differ only in later stages.

    Attributes:
        stage: number of the stage that continues or begins here.
        steps: number of finished steps of that stage; 0 if it has not begun.
        state: the state after the newest step, which is one of the stage before if `stage` has not begun.
        frozen: the frozen tree of that step's stage.
        found: the findings of the stages that have begun.
        ended: the trained trees with which the stages before that step's ended. The frozen trees and findings
            of these stages are computed from them again, and need not be saved.
        rows: float32 (steps of the epoch so far, 4), their measurements, see `records.METRICS`.
        so_far: the cost of the training so far.
    """

    stage: int
    steps: int
    state: TrainState
    frozen: Tree
    found: Mapping[str, Any]
    ended: tuple[Tree, ...] = ()
    rows: np.ndarray = dataclasses.field(default_factory=lambda: NO_STEPS)
    so_far: SoFar = dataclasses.field(default_factory=SoFar)


@dataclasses.dataclass(frozen=True)
class Course:
    """Everything that stays the same while a task is trained.

    Attributes:
        network: the backbone.
        method, stages: the method, and its stages for the task.
        start: {collection: tree}, the variables that it starts from, on the host.
        split: the training data.
        config: the task's config.
        pool: the stored models, for the search.
        steps: number of steps per epoch.
    """

    network: Network
    method: Method
    stages: tuple[Stage, ...]
    start: Tree
    split: Split
    config: TrainConfig
    pool: Pooled
    steps: int

    @property
    def epochs(self) -> int:
        """Epochs of all stages."""
        return sum(stage.epochs for stage in self.stages)

    @property
    def other(self) -> dict[str, Any]:
        """The model's other collections at the start, such as batch_stats."""
        return {collection: tree for collection, tree in self.start.items() if collection != "params"}

    def first_epoch(self, number: int) -> int:
        """Returns the epoch with which a stage begins, from 0."""
        return sum(stage.epochs for stage in self.stages[:number])

    def steps_of(self, number: int) -> int:
        """Returns the number of steps of a stage."""
        return self.stages[number].epochs * self.steps

    def averages(self, number: int) -> bool:
        """Whether a stage keeps moving averages: only the last one does, with `config.ema`."""
        return self.config.ema > 0 and number == len(self.stages) - 1

    def moment(self, own: Tree, frozen: Tree, found: Mapping[str, Any]) -> Moment:
        """Returns the `Moment` for a stage that begins."""
        return Moment(self.network, self.pool, self.config, self.start, own, frozen, found)

    def beginning(self) -> Point:
        """Returns the point before the first stage."""
        return Point(0, 0, start_state(self.other, self.config), {}, {})

    def begun(self, point: Point) -> tuple[Begun, Point]:
        """Returns what the stage of a point begins with, and the point with its frozen tree and findings."""
        stage = self.stages[point.stage]
        begun = stage.begin(self.moment(point.state.own, point.frozen, point.found))
        ended = (*point.ended, point.state.own) if point.stage else ()
        found = {**point.found, **begun.found}
        return begun, dataclasses.replace(point, frozen=begun.frozen, found=found, ended=ended)

    def retraced(self, leaves: Sequence[np.ndarray], ended: int) -> Point:
        """Returns the point whose trees have these leaves, with frozen trees and findings computed again.

        Args:
            leaves: of the point's (ended, state), in the order of `jax.tree.leaves`.
            ended: number of trees of `Point.ended`.

        Raises:
            ValueError: the leaves are of other trees.
        """
        rest, point = list(leaves), self.beginning()
        for number in range(ended + 1):
            begun, point = self.begun(dataclasses.replace(point, stage=number))
            if number < ended:
                own = _filled(begun.own, rest)
                point = dataclasses.replace(point, state=dataclasses.replace(point.state, own=own))
        state = _filled(self._like(ended, begun, point.state), rest)
        if rest:
            raise ValueError(f"{len(rest)} more arrays than this training has")
        return dataclasses.replace(point, state=state)

    def _like(self, number: int, begun: Begun, state: TrainState) -> TrainState:
        """Returns a state of a stage of which only structure and shapes matter."""
        stage = self.stages[number]
        fresh = {
            name: jax.eval_shape(group.optimizer.init, begun.own[name])
            for name, group in stage.groups.items()
        }
        state = begun_state(state, stage, begun, fresh)
        average = {"own": state.own, "other": state.other} if self.averages(number) else {}
        return dataclasses.replace(state, average=average)


def _filled(like: Any, leaves: list[np.ndarray]) -> Any:
    """Returns a tree of the first of the leaves, which are taken from the list."""
    wanted, structure = jax.tree.flatten(like)
    mine = leaves[: len(wanted)]
    del leaves[: len(wanted)]
    shapes = [(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype)) for leaf in wanted]
    if [(leaf.shape, leaf.dtype) for leaf in mine] != shapes:
        raise ValueError("its arrays have other shapes than this training's")
    return jax.tree.unflatten(structure, mine)
