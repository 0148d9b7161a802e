"""`Trainer`: runs a method's stages for one task after another, with one compiled step a stage."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cwps_jax import methods
from cwps_jax.core.channels import Layout
from cwps_jax.core.heads import head_of
from cwps_jax.core.trees import Tree
from cwps_jax.data.pipeline import steps_per_epoch
from cwps_jax.data.preparation import Preparation
from cwps_jax.data.split import Arrays, Split, as_split
from cwps_jax.methods.head_first import stages_of
from cwps_jax.methods.method import Effective, Finished, Group, Method, Moment, Pooled, Stage
from cwps_jax.methods.network import Network
from cwps_jax.parallel import Compiled, Parallel
from cwps_jax.profiling import Profiler
from cwps_jax.search.models import StoredModels
from cwps_jax.settings import TrainConfig
from cwps_jax.tracing import mode
from cwps_jax.train.epochs import mean_statistics, run_epoch
from cwps_jax.train.evaluation import Predictor
from cwps_jax.train.finite import check_finite
from cwps_jax.train.norms import estimated
from cwps_jax.train.objectives import Metric, Objective, WholeSplit, accuracy, cross_entropy, smoothed
from cwps_jax.train.records import Progress, Trained
from cwps_jax.train.state import TrainState, begun_state, make_plan, moved_moments, start_state
from cwps_jax.train.step import at_the_end, make_norm_step, make_step

NO_POOL = Pooled(
    StoredModels({}, {}, lambda owner: {}, lambda owner: {}, dict), ()
)  # for methods that do not search


class Trainer:
    """Trains tasks of one model. Keep it over the tasks: its compiled steps serve them all.

    Args:
        model: a Linen model with its head.
        layout: its layout.
        example: shape and type of a batch of one image; a dict of such for `Inputs`.
        loss, metric: functions of (outputs, batch) to one value per item; a metric is better when larger, and
            may be one of a `whole_split`.
        parallel: how steps are spread over devices.
        profiler: looks at a few steps of every stage.
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
        self._steps: dict[Any, Compiled] = {}
        self._predictors: dict[int, Predictor] = {}

    def train(
        self,
        variables: Mapping[str, Any],
        split: Split | Arrays,
        config: TrainConfig,
        pool: Pooled = NO_POOL,
        observe: Callable[[Progress], None] = lambda progress: None,
    ) -> Trained:
        """Runs all stages of the config's method.

        Args:
            variables: the start, "params" and the model's other collections, on the host.
            split: the training data.
            config: the task's config.
            pool: the stored models, for the search.
            observe: called once an epoch.

        Raises:
            CwpsError: there is not one batch of images, the devices do not divide it, or the method cannot
                serve this backbone.
            FloatingPointError: the loss is not finite at the end of an epoch, or what was trained at the end.
        """
        began = time.perf_counter()
        split = as_split(split)
        self.parallel.check_batch(config.batch_size, split.preparation.group * config.accumulate)
        method = methods.resolve(config.method)
        method.check(self.network, config)
        stages = stages_of(method, self.network, config)
        steps = steps_per_epoch(split, config.batch_size)
        epochs = sum(stage.epochs for stage in stages)
        other = {collection: tree for collection, tree in variables.items() if collection != "params"}
        state = self.parallel.replicate(start_state(other, config))
        moment = Moment(self.network, pool, config, variables, {}, {}, {})
        done, numbers, used = 0, 0, []
        for stage in stages:
            moment, state, held = self._begin(stage, state, moment)
            numbers = max(numbers, sum(leaf.size for leaf in jax.tree.leaves(moment.own)))
            plan = make_plan(config, stage, first_epoch=done, epochs=epochs, steps_per_epoch=steps)
            told = self.parallel.replicate(plan)
            if stage.reestimates_norms and "batch_stats" in other:
                model = self.model_of(method)
                state = self._reestimate_norms(stage, model, state, held, split, config, done * steps)
            averages = config.ema > 0 and stage is stages[-1]
            if averages:  # fetched and placed: a donated state must not hold a buffer twice
                start = self.parallel.fetch({"own": state.own, "other": state.other})
                state = dataclasses.replace(state, average=self.parallel.replicate(start))
            step = self._step(stage, method, config, averages, split.preparation)
            used.append(step)
            seconds = []
            with self._watched(step, method.name, stage.name, stage.epochs * steps) as taken:
                for epoch in range(done, done + stage.epochs):
                    state, measured, elapsed = run_epoch(
                        taken, state, held, told, split, config, self.parallel, epoch
                    )
                    seconds.append(elapsed)
                    observe(
                        Progress(
                            method=method.name,
                            stage=stage.name,
                            epoch=epoch + 1,
                            epochs=epochs,
                            last_of_stage=epoch + 1 == done + stage.epochs,
                            seconds_per_epoch=float(np.median(seconds)),
                            **measured,
                        )
                    )
            done += stage.epochs
        state = self.parallel.fetch(state)
        final = state.average or {"own": state.own, "other": state.other}
        moment = dataclasses.replace(moment, own=final["own"])
        params = jax.device_get(self._finish(stages[-1])(moment.own, moment.frozen).params)
        check_finite({"params": params, **final["other"], "own": moment.own})
        gates = moment.frozen.get("gates", {})
        return Trained(
            finished=Finished(moment, params, gates, final["other"]),
            method=method,
            epochs=epochs,
            numbers=numbers,
            seconds=time.perf_counter() - began,
            lambda_=measured["lambda_"],
            peak_memory_bytes=_peak_memory(used),
            flops_per_step=max((step.flops or 0.0 for step in used), default=None),
        )

    def new_variables(self, seed: int) -> dict[str, Any]:
        """Returns freshly initialised variables of the whole model, on the host."""
        program = self._compiled("init", lambda: Compiled(jax.jit(self._init)))
        return dict(jax.device_get(program(jax.random.key(seed), self._example_batch())))

    def new_head(self, seed: int) -> dict[str, Any]:
        """Returns a freshly initialised head on the host, {collection: tree}, by the model's initialisers."""

        def initialise(key, batch):
            return head_of(self.layout, self._init(key, batch))

        # Under jit the compiler drops the backbone, whose start is not needed.
        program = self._compiled("head", lambda: Compiled(jax.jit(initialise)))
        return dict(jax.device_get(program(jax.random.key(seed), self._example_batch())))

    def predictor(self, model: nn.Module) -> Predictor:
        """Returns the predictor of a model, the same one each time, so that it compiles once."""
        # By identity: a user's module need not be hashable. The predictor keeps its model alive.
        if id(model) not in self._predictors:
            self._predictors[id(model)] = Predictor(model, self.parallel)
        return self._predictors[id(model)]

    def _init(self, key: jax.Array, inputs: Any) -> Tree:
        return nn.meta.unbox(self.model.init(key, inputs, **mode(self.model, train=False)))

    def _example_batch(self) -> Any:
        return jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), self.example)

    def _watched(
        self, step: Compiled, method: str, stage: str, steps: int
    ) -> contextlib.AbstractContextManager[Callable[..., Any]]:
        if not self.profiler:
            return contextlib.nullcontext(step)
        return self.profiler.watched(step, method, stage, steps)

    def _begin(self, stage: Stage, state: TrainState, moment: Moment) -> tuple[Moment, TrainState, Tree]:
        """Returns the moment and the state before a stage's first step, and what its steps read beside it."""
        host = self.parallel.fetch(state)
        begun = stage.begin(dataclasses.replace(moment, own=host.own))
        moment = dataclasses.replace(
            moment, own=begun.own, frozen=begun.frozen, found={**moment.found, **begun.found}
        )
        moved = moved_moments(host, stage, begun)
        fresh = {
            name: self._fresh(group)(begun.own[name])
            for name, group in stage.groups.items()
            if name not in moved
        }
        state = begun_state(host, stage, begun, {**fresh, **moved})
        return moment, *self.parallel.replicate((state, stage.on_device(begun.frozen)))

    def _reestimate_norms(
        self,
        stage: Stage,
        model: nn.Module,
        state: TrainState,
        frozen: Tree,
        split: Split,
        config: TrainConfig,
        start: int,
    ) -> TrainState:
        """Returns the state with norm statistics estimated anew over single batches of training data."""
        statistics = self._compiled(
            ("norms", stage.rule, stage.seen, id(model), split.preparation),
            lambda: self.parallel.compile(
                make_norm_step(stage, model, self.parallel.axis_name, split.preparation)
            ),
        )

        def with_statistics(tree: Tree) -> TrainState:
            return dataclasses.replace(
                state, other={**state.other, "batch_stats": self.parallel.replicate(tree)}
            )

        def after(tree: Tree) -> Tree:
            begun = with_statistics(tree)
            found = mean_statistics(statistics, begun, frozen, split, config, self.parallel, start)
            return found["batch_stats"]

        now = self.parallel.fetch(state.other["batch_stats"])
        return with_statistics(estimated(after, now, self.network.batch_norms))

    def _fresh(self, group: Group) -> Callable[[Tree], Any]:
        """Returns what makes an optimizer's state before its first step."""
        # One program for all of its zeros, where op by op would compile one for each shape.
        return self._compiled(("fresh", group.optimizer), lambda: Compiled(jax.jit(group.optimizer.init)))

    def _finish(self, stage: Stage) -> Callable[[Tree, Tree], Effective]:
        program = jax.jit(functools.partial(at_the_end, stage))
        return self._compiled(("finish", stage.rule), lambda: Compiled(program))

    def _step(
        self, stage: Stage, method: Method, config: TrainConfig, averages: bool, preparation: Preparation
    ) -> Compiled:
        # What a step is built from: its stage's functions, its loss, its optimizers and how a batch is
        # prepared. All else is traced.
        key = (
            (stage.rule, stage.context, stage.project, stage.schedule, stage.loss, stage.seen),
            (stage.inference, stage.penalty is None, averages),
            tuple((name, group.optimizer) for name, group in stage.groups.items()),
            (preparation, config.label_smoothing, config.accumulate),
            id(self.model_of(method)),  # a user's module need not be hashable
        )
        loss = smoothed(self.loss, config.label_smoothing)
        metric = self.metric.per_item if isinstance(self.metric, WholeSplit) else self.metric
        return self._compiled(
            key,
            lambda: self.parallel.compile(
                make_step(
                    stage,
                    self.model_of(method),
                    loss,
                    metric,
                    self.parallel.axis_name,
                    preparation,
                    config.accumulate,
                ),
                donate=(0,),
            ),
        )

    def model_of(self, method: Method, model: nn.Module | None = None) -> nn.Module:
        """Returns what the method makes of a model, by default the trainer's own, the same each time."""
        plain = self.model if model is None else model
        return self.network.remembered(("model", method, id(plain)), lambda: method.wrap(plain))

    def _compiled(self, key: Any, build: Callable[[], Compiled]) -> Compiled:
        if key not in self._steps:
            self._steps[key] = build()
        return self._steps[key]


def _peak_memory(steps: list[Compiled]) -> int | None:
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    return max((step.peak_bytes or 0 for step in steps), default=None)
