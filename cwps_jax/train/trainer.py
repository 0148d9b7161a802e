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
import optax

from cwps_jax import methods
from cwps_jax.active_gradient import gradient_work
from cwps_jax.config import TrainConfig
from cwps_jax.core.channels import Layout
from cwps_jax.core.compact import Capacity, choose_capacity
from cwps_jax.core.trees import Tree, select
from cwps_jax.data.pipeline import steps_per_epoch
from cwps_jax.data.preparation import Preparation
from cwps_jax.data.split import Arrays, Split, as_split
from cwps_jax.methods.method import Frozen, Moment, Pooled, Stage
from cwps_jax.parallel import Compiled, Parallel
from cwps_jax.profiling import Profiler
from cwps_jax.search.models import StoredModels
from cwps_jax.tracing import cast_types, mode, parameter_depths
from cwps_jax.train.epochs import mean_statistics, run_epoch
from cwps_jax.train.evaluation import Predictor
from cwps_jax.train.objectives import Objective, accuracy, cross_entropy, smoothed
from cwps_jax.train.optimizer import child_optimizer, score_optimizer
from cwps_jax.train.records import Progress, Trained
from cwps_jax.train.state import TrainState, compact_state, in_cast_types, make_plan, start_state
from cwps_jax.train.step import make_norm_step, make_step

# What the optimizers are built from.
CHILD_SETTINGS = ("optimizer", "momentum", "weight_decay", "layer_decay")
SCORE_SETTINGS = ("score_optimizer", "momentum")

NO_POOL = Pooled(
    StoredModels({}, {}, lambda owner: {}, lambda owner: {}, dict), ()
)  # for methods that do not search


class Trainer:
    """Trains tasks of one model. Keep it over the tasks: its compiled steps serve them all.

    Args:
        model: a Linen model with its head.
        layout: its layout.
        example: shape and type of a batch of one image.
        loss, metric: functions of (outputs, batch) to one value per item; a metric is better when larger.
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
        metric: Objective = accuracy,
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
        self._steps: dict[Any, Compiled] = {}
        self._capacities: list[Capacity] = []
        self._predictors: dict[int, Predictor] = {}
        self._forwards: dict[str, Compiled] = {}

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
            variables: the child's start, "params" and the model's other collections, on the host.
            split: the training data.
            config: the task's config.
            pool: the stored models, for the search.
            observe: called once an epoch.

        Raises:
            CwpsError: there is not one batch of images, or the devices do not divide it.
            FloatingPointError: the loss is not finite at the end of an epoch.
        """
        began = time.perf_counter()
        split = as_split(split)
        self.parallel.check_batch(config.batch_size, split.preparation.group)
        method = methods.create(config)
        steps = steps_per_epoch(split, config.batch_size)
        epochs = sum(stage.epochs for stage in method.stages)
        other = {collection: tree for collection, tree in variables.items() if collection != "params"}
        optimizer = self._moments(config, CHILD_SETTINGS, self._child_optimizer)(variables["params"])
        state = self.parallel.replicate(start_state(variables["params"], other, optimizer, config))
        frozen, done, used = Frozen(), 0, []
        for stage in method.stages:
            state, frozen = self._begin(stage, state, frozen, pool, config)
            plan = make_plan(config, stage, first_epoch=done, epochs=epochs, steps_per_epoch=steps)
            read = in_cast_types(frozen, self._cast_types) if stage.compact else frozen
            held, told = self.parallel.replicate((read, plan))
            if stage.reestimates_norms and "batch_stats" in other:
                state = self._reestimate_norms(stage, state, held, split, config, done * steps)
            averages = config.ema > 0 and stage is method.stages[-1]
            if averages:  # fetched and placed: a donated state must not hold a buffer twice
                start = self.parallel.fetch({"params": state.child, **state.other})
                state = dataclasses.replace(state, average=self.parallel.replicate(start))
            step = self._step(stage, config, averages, split.preparation)
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
        final = state.average or {"params": state.child, **state.other}
        child, other = final["params"], {collection: final[collection] for collection in other}
        params, _ = jax.jit(method.stages[-1].effective)(child, {}, frozen, jnp.float32(1))
        return Trained(
            params=jax.device_get(params),
            other=other,
            gates=jax.device_get(frozen.gates),
            sources=jax.device_get(frozen.sources),
            pooled=pool.names,
            epochs=epochs,
            seconds=time.perf_counter() - began,
            lambda_=measured["lambda_"],
            peak_memory_bytes=_peak_memory(used),
            flops_per_step=max((step.flops or 0.0 for step in used), default=None),
        )

    def new_variables(self, seed: int) -> dict[str, Any]:
        """Returns freshly initialised variables of the whole model, on the host."""
        program = self._compiled("init", lambda: Compiled(jax.jit(self._init)))
        return dict(jax.device_get(program(jax.random.key(seed), self._example_batch())))

    def new_head(self, seed: int) -> Tree:
        """Returns a freshly initialised head, by the model's own initialisers, on the host."""

        def initialise(key, batch):
            return select(self._init(key, batch)["params"], self.layout.head_paths)

        # Under jit the compiler drops the backbone, whose start is not needed.
        program = self._compiled("head", lambda: Compiled(jax.jit(initialise)))
        return jax.device_get(program(jax.random.key(seed), self._example_batch()))

    def predictor(self, model: nn.Module) -> Predictor:
        """Returns the predictor of a model, the same one each time, so that it compiles once."""
        # By identity: a user's module need not be hashable. The predictor keeps its model alive.
        if id(model) not in self._predictors:
            self._predictors[id(model)] = Predictor(
                model, self.parallel, head=self.layout.head_paths, programs=self._forwards
            )
        return self._predictors[id(model)]

    def _init(self, key: jax.Array, batch: jax.Array) -> Tree:
        return self.model.init(key, batch, **mode(self.model, train=False))

    def _example_batch(self) -> jax.Array:
        return jnp.zeros(self.example.shape, self.example.dtype)

    def _watched(
        self, step: Compiled, method: str, stage: str, steps: int
    ) -> contextlib.AbstractContextManager[Callable[..., Any]]:
        if not self.profiler:
            return contextlib.nullcontext(step)
        return self.profiler.watched(step, method, stage, steps)

    def _begin(
        self, stage: Stage, state: TrainState, frozen: Frozen, pool: Pooled, config: TrainConfig
    ) -> tuple[TrainState, Frozen]:
        host = self.parallel.fetch(state)
        moment = Moment(self.layout, pool, config, host.child, host.masks, frozen)
        masks, frozen = stage.begin(moment)
        scores = self._moments(config, SCORE_SETTINGS, score_optimizer)(masks) if masks else ()
        host = dataclasses.replace(host, masks=masks, score_optimizer=scores)
        if stage.compact:
            host, frozen = compact_state(host, frozen, self.layout, self._capacity(frozen.gates))
        return self.parallel.replicate(host), frozen

    def _reestimate_norms(
        self, stage: Stage, state: TrainState, frozen: Frozen, split: Split, config: TrainConfig, start: int
    ) -> TrainState:
        """Returns the state with norm statistics averaged over single batches of training data."""
        statistics = self._compiled(
            ("norms", stage.effective, split.preparation),
            lambda: self.parallel.compile(
                make_norm_step(stage, self.model, self.parallel.axis_name, split.preparation)
            ),
        )
        average = mean_statistics(statistics, state, frozen, split, config, self.parallel, start)
        return dataclasses.replace(state, other={**state.other, **self.parallel.replicate(average)})

    def _child_optimizer(self, config: TrainConfig) -> optax.GradientTransformation:
        return child_optimizer(config, self.layout, self._depths(config))

    def _moments(
        self,
        config: TrainConfig,
        settings: tuple[str, ...],
        rule: Callable[[TrainConfig], optax.GradientTransformation],
    ) -> Callable[[Tree], Any]:
        """Returns what makes an optimizer's state before its first step."""
        # One program for all of its zeros, where op by op would compile one for each shape.
        key = ("moments", *((name, getattr(config, name)) for name in settings))
        return self._compiled(key, lambda: Compiled(jax.jit(rule(config).init)))

    def _capacity(self, gates: Tree) -> Capacity:
        """Returns the room for open channels, the same for as many tasks as may share a compiled step."""
        capacity = choose_capacity(self.layout, jax.device_get(gates), self._capacities, self._work)
        if capacity not in self._capacities:
            self._capacities.append(capacity)
        return capacity

    def _depths(self, config: TrainConfig) -> Mapping[str, int]:
        return self._all_depths if config.layer_decay < 1 else {}

    @functools.cached_property
    def _work(self) -> Mapping[str, float]:
        return gradient_work(self.model, self.example, self.layout)

    @functools.cached_property
    def _cast_types(self) -> Mapping[str, Any]:
        return cast_types(self.model, self.example)

    @functools.cached_property
    def _all_depths(self) -> Mapping[str, int]:
        return parameter_depths(self.model, self.example, head=self.layout.head_paths)

    def _step(self, stage: Stage, config: TrainConfig, averages: bool, preparation: Preparation) -> Compiled:
        # What a step is built from: a stage's rule, its loss, its optimizer and how a batch is prepared. All
        # else is traced.
        rule = (stage.effective, stage.penalised, stage.trains_backbone, averages)
        settings: tuple[str, ...] = (*CHILD_SETTINGS, "label_smoothing")
        settings += (*SCORE_SETTINGS, "estimator") * stage.penalised
        loss = smoothed(self.loss, config.label_smoothing)
        key = (*rule, preparation, *(getattr(config, name) for name in settings))
        return self._compiled(
            key,
            lambda: self.parallel.compile(
                make_step(
                    stage,
                    self.model,
                    self.layout,
                    config,
                    loss,
                    self.metric,
                    self.parallel.axis_name,
                    self._depths(config),
                    preparation,
                ),
                donate=(0,),
            ),
        )

    def _compiled(self, key: Any, build: Callable[[], Compiled]) -> Compiled:
        if key not in self._steps:
            self._steps[key] = build()
        return self._steps[key]


def _peak_memory(steps: list[Compiled]) -> int | None:
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    return max((step.peak_bytes or 0 for step in steps), default=None)
