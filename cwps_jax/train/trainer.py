"""`Trainer`: runs a method's stages for one task after another, with one compiled step for each stage."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from cwps_jax import methods
from cwps_jax.core.channels import Layout
from cwps_jax.core.trees import Tree
from cwps_jax.data.pipeline import steps_per_epoch
from cwps_jax.data.split import Arrays, Split, as_split
from cwps_jax.methods.head_first import stages_of
from cwps_jax.methods.method import Finished, Method
from cwps_jax.methods.network import Network
from cwps_jax.methods.pooled import Pooled
from cwps_jax.parallel import Compiled, Parallel
from cwps_jax.profiling import Profiler
from cwps_jax.search.models import StoredModels
from cwps_jax.settings import TrainConfig
from cwps_jax.sharding import check_rules
from cwps_jax.train.course import Course, Point
from cwps_jax.train.epochs import Rows, run_epoch
from cwps_jax.train.evaluation import Predictor
from cwps_jax.train.finite import check_finite
from cwps_jax.train.first_step import before_first_step
from cwps_jax.train.objectives import Metric, Objective, accuracy, cross_entropy
from cwps_jax.train.programs import Programs
from cwps_jax.train.records import (
    METRICS,
    NO_STEPS,
    Observe,
    Progress,
    Stopwatch,
    Trained,
    measured,
    unobserved,
)
from cwps_jax.train.saves import Saves
from cwps_jax.train.state import TrainState, begun_state, make_plan, moved_moments

NO_POOL = Pooled(
    StoredModels({}, {}, lambda owner: {}, lambda owner: {}, dict), ()
)  # for methods that do not search


class Trainer:
    """Trains tasks of one model. Use one trainer for all tasks, so that they share its compiled steps.

    Args:
        model: a Linen model with its head.
        layout: its layout.
        example: shape and type of a batch of one image; a dict of such for `Inputs`.
        loss: a function of (outputs, batch) that returns one value per item, (batch,).
        metric: a function like `loss` whose values are better when larger, or a metric of `whole_split`.
        parallel: how steps are spread over the devices.
        profiler: traces and times a few steps of every stage.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        example: jax.ShapeDtypeStruct,
        *,
        loss: Objective = cross_entropy,
        metric: Metric = accuracy,
        parallel: Parallel | None = None,
        profiler: Profiler | None = None,
    ) -> None:
        self.model = model
        self.layout = layout
        self.loss = loss
        self.metric = metric
        self.parallel = parallel or Parallel()
        self.profiler = profiler
        self.example = example
        self.network = Network(model, layout, example)
        self.programs = Programs(self.network, self.parallel, loss, metric)
        self._predictors: dict[int, Predictor] = {}

    def train(
        self,
        variables: Mapping[str, Any],
        split: Split | Arrays,
        config: TrainConfig,
        pool: Pooled = NO_POOL,
        observe: Observe = unobserved,
        saves: Saves | None = None,
    ) -> Trained:
        """Runs all stages of the config's method, from the newest saved point of an interrupted training.

        Args:
            variables: the start, {"params" and the model's other collections: nested dict}, on the host.
            split: the training data.
            config: the task's config.
            pool: the stored models, for the search.
            observe: called once per epoch with a `Progress`.
            saves: the saved points of this training; None saves nothing.

        Raises:
            CwpsError: there are fewer images than a batch, the number of devices does not divide a batch, the
                method cannot serve this backbone, or the saved points belong to another training.
            FloatingPointError: a loss is not finite, or a trained array at the end.
            Preempted: the process has been asked to end, and the point has been saved.
        """
        course = self.course(variables, split, config, pool)
        with contextlib.closing(saves) if saves else contextlib.nullcontext():
            point = (saves and saves.newest(course)) or course.beginning()
            return self.go_on(course, point, observe, saves)

    def course(
        self,
        variables: Mapping[str, Any],
        split: Split | Arrays,
        config: TrainConfig,
        pool: Pooled = NO_POOL,
    ) -> Course:
        """Returns everything that stays the same while a task is trained, see `train`.

        Raises:
            CwpsError: as `train`.
        """
        split = as_split(split)
        self.parallel.check_batch(config.batch_size, split.preparation.group * config.accumulate)
        check_rules(self.parallel.shard, self.layout.backbone_shapes.keys() | set(self.layout.head_paths))
        method = methods.resolve(config.method)
        method.check(self.network, config)
        stages = stages_of(method, self.network, config)
        steps = steps_per_epoch(split, config.batch_size)
        return Course(self.network, method, stages, variables, split, config, pool, steps)

    def go_on(
        self,
        course: Course,
        point: Point,
        observe: Observe = unobserved,
        saves: Saves | None = None,
    ) -> Trained:
        """Runs the stages from a point on, to the end.

        Args:
            course: see `course`.
            point: `course.beginning()`, or the result of `run_stage` of a course with the same stages before
                it.
            observe: see `train`.
            saves: see `train`.
        """
        while point.stage < len(course.stages):
            point = self.run_stage(course, point, observe, saves)
            if saves and saves.wanted(between_stages=True):
                saves.save(course, point)
        return self._finished(course, point)

    def run_stage(
        self,
        course: Course,
        point: Point,
        observe: Observe = unobserved,
        saves: Saves | None = None,
    ) -> Point:
        """Runs the stage of a point to its end, and returns the point where the next one begins.

        Args:
            course: see `go_on`.
            point: see `go_on`.
            observe: see `go_on`.
            saves: see `go_on`.
        """
        number, config, split = point.stage, course.config, course.split
        stage, first = course.stages[number], course.first_epoch(number)
        step = self.programs.step(stage, course.method, config, course.averages(number), split.preparation)
        clock = Stopwatch()
        if point.steps:
            state, held = map(self.parallel.place, (point.state, stage.on_device(point.frozen)))
        else:
            point, state, held = self.begin(course, point)
            state = before_first_step(self.programs, self.parallel, course, number, state, held)
        plan = make_plan(config, stage, first_epoch=first, epochs=course.epochs, steps_per_epoch=course.steps)
        told = self.parallel.replicate(plan)
        numbers = sum(leaf.size for leaf in jax.tree.leaves(point.state.own))

        def reached(state: TrainState, rows: np.ndarray, steps: int) -> Point:
            lambda_ = float(rows[-1, METRICS.index("lambda")]) if len(rows) else point.so_far.lambda_
            so_far = point.so_far.with_steps(clock.seconds, numbers, lambda_, _peak_memory(step), step.flops)
            state = self.parallel.fetch(state)
            return dataclasses.replace(point, steps=steps, state=state, rows=rows, so_far=so_far)

        rows = before = point.rows
        seconds = list[float]()
        left = course.steps_of(number) - point.steps
        with self._watched(step, course.method.name, stage.name, left) as taken:
            for epoch in range((point.steps - len(before)) // course.steps, stage.epochs):

                def between(state: TrainState, rows: Rows, epoch: int = epoch) -> None:
                    if not saves or not saves.wanted():
                        return
                    seen = rows()
                    steps = epoch * course.steps + len(seen)
                    if steps < course.steps_of(number):  # else it is the next stage's point
                        saves.save(course, reached(state, seen, steps))

                state, rows, elapsed = run_epoch(
                    taken,
                    state,
                    held,
                    told,
                    split,
                    config,
                    self.parallel,
                    first + epoch,
                    before,
                    between,
                )
                before = NO_STEPS
                seconds.append(elapsed)
                observe(
                    Progress(
                        method=course.method.name,
                        stage=stage.name,
                        epoch=first + epoch + 1,
                        epochs=course.epochs,
                        last_of_stage=epoch + 1 == stage.epochs,
                        seconds_per_epoch=float(np.median(seconds)),
                        **measured(rows),
                    )
                )
        return dataclasses.replace(reached(state, rows, 0), stage=number + 1, rows=NO_STEPS)

    def begin(self, course: Course, point: Point) -> tuple[Point, TrainState, Tree]:
        """Returns a stage's first point, and on the devices its state and the frozen arrays for its steps.

        Args:
            course: see `go_on`.
            point: see `go_on`.
        """
        stage, before = course.stages[point.stage], point.state
        begun, point = course.begun(point)
        moved = moved_moments(before, stage, begun)
        fresh = {
            name: self.programs.fresh(group)(begun.own[name])
            for name, group in stage.groups.items()
            if name not in moved
        }
        point = dataclasses.replace(point, state=begun_state(before, stage, begun, {**fresh, **moved}))
        return point, *map(self.parallel.place, (point.state, stage.on_device(begun.frozen)))

    def _finished(self, course: Course, point: Point) -> Trained:
        """Returns the trained network, from the point after the last stage."""
        clock, state = Stopwatch(), point.state
        final = state.average or {"own": state.own, "other": state.other}
        moment = course.moment(final["own"], point.frozen, point.found)
        params = jax.device_get(self.programs.finish(course.stages[-1])(moment.own, moment.frozen).params)
        check_finite({"params": params, **final["other"], "own": moment.own})
        gates = moment.frozen.get("gates", {})
        return Trained(
            finished=Finished(moment, params, gates, final["other"]),
            method=course.method,
            epochs=course.epochs,
            so_far=dataclasses.replace(point.so_far, seconds=point.so_far.seconds + clock.seconds),
        )

    def new_variables(self, seed: int) -> dict[str, Any]:
        """Returns freshly initialised variables of the whole model, on the host."""
        return self.programs.new_variables(seed)

    def new_head(self, seed: int) -> dict[str, Any]:
        """Returns a freshly initialised head on the host, {collection: tree}, by the model's initialisers."""
        return self.programs.new_head(seed)

    def predictor(self, model: nn.Module) -> Predictor:
        """Returns the predictor of a model, the same one each time, so that it compiles once."""
        # By identity: a user's module need not be hashable. The predictor keeps its model alive.
        if id(model) not in self._predictors:
            self._predictors[id(model)] = Predictor(model, self.parallel)
        return self._predictors[id(model)]

    def model_of(self, method: Method, model: nn.Module | None = None) -> nn.Module:
        """Returns the model that the method makes of one, by default of the trainer's; the same each time."""
        return self.programs.model_of(method, model)

    def _watched(
        self, step: Compiled, method: str, stage: str, steps: int
    ) -> contextlib.AbstractContextManager[Callable[..., Any]]:
        if not self.profiler:
            return contextlib.nullcontext(step)
        return self.profiler.watched(step, method, stage, steps)


def _peak_memory(step: Compiled) -> int | None:
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats["peak_bytes_in_use"]) if "peak_bytes_in_use" in stats else step.peak_bytes
