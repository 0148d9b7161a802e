"""`Programs`: the compiled functions for the tasks of one model, each made once."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cwps_jax.core.heads import head_of
from cwps_jax.core.trees import Tree
from cwps_jax.data.preparation import Preparation
from cwps_jax.methods.method import Effective, Group, Method, Stage
from cwps_jax.methods.network import Network
from cwps_jax.parallel import Compiled, Parallel
from cwps_jax.settings import TrainConfig
from cwps_jax.tracing import mode
from cwps_jax.train.objectives import Metric, Objective, WholeSplit, smoothed
from cwps_jax.train.step import at_the_end, make_norm_step, make_step


class Programs:
    """Compiled functions by their static parts; everything else is traced, so tasks share them.

    Args:
        network: the model.
        parallel: how steps are spread over devices.
        loss, metric: see `Trainer`.
    """

    def __init__(self, network: Network, parallel: Parallel, loss: Objective, metric: Metric) -> None:
        self._network = network
        self._parallel = parallel
        self._loss = loss
        self._metric = metric
        self._built: dict[Any, Compiled] = {}

    def __len__(self) -> int:
        """The number of functions."""
        return len(self._built)

    def once(self, key: Any, build: Callable[[], Compiled]) -> Compiled:
        """Returns the result of `build`, which is called once for each key."""
        if key not in self._built:
            self._built[key] = build()
        return self._built[key]

    def model_of(self, method: Method, model: nn.Module | None = None) -> nn.Module:
        """Returns the model that a method makes of one, by default of the network's; the same each time."""
        plain = self._network.model if model is None else model
        return self._network.remembered(("model", method, id(plain)), lambda: method.wrap(plain))

    def step(
        self, stage: Stage, method: Method, config: TrainConfig, averages: bool, preparation: Preparation
    ) -> Compiled:
        """Returns a stage's training step."""
        # What a step is built from: its stage's functions, its loss, its optimizers and how a batch is
        # prepared. All else is traced.
        model = self.model_of(method)
        key = (
            (stage.rule, stage.context, stage.project, stage.schedule, stage.loss, stage.seen),
            (stage.inference, stage.penalty is None, averages),
            tuple((name, group.optimizer) for name, group in stage.groups.items()),
            (preparation, config.label_smoothing, config.accumulate),
            id(model),  # a user's module need not be hashable
        )
        loss = smoothed(self._loss, config.label_smoothing)
        metric = self._metric.per_item if isinstance(self._metric, WholeSplit) else self._metric
        return self.once(
            key,
            lambda: self._parallel.compile(
                make_step(
                    stage,
                    model,
                    loss,
                    metric,
                    self._parallel.axis_name,
                    preparation,
                    config.accumulate,
                    self._parallel.whole,
                ),
                donate=(0,),
                placed_output=True,
                rounds=config.accumulate,
            ),
        )

    def statistics(self, stage: Stage, method: Method, preparation: Preparation) -> Compiled:
        """Returns the function that computes the norm statistics of one batch."""
        model = self.model_of(method)
        return self.once(
            ("norms", stage.rule, stage.seen, id(model), preparation),
            lambda: self._parallel.compile(
                make_norm_step(stage, model, self._parallel.axis_name, preparation)
            ),
        )

    def fresh(self, group: Group) -> Callable[[Tree], Any]:
        """Returns the function that makes an optimizer's state before its first step."""
        # One program for all of its zeros, where op by op would compile one for each shape.
        return self.once(("fresh", group.optimizer), lambda: Compiled(jax.jit(group.optimizer.init)))

    def finish(self, stage: Stage) -> Callable[[Tree, Tree], Effective]:
        """Returns a stage's rule as it is at the end of an epoch."""
        program = jax.jit(functools.partial(at_the_end, stage))
        return self.once(("finish", stage.rule), lambda: Compiled(program))

    def new_variables(self, seed: int) -> dict[str, Any]:
        """Returns freshly initialised variables of the whole model, on the host."""
        program = self.once("init", lambda: Compiled(jax.jit(self._init)))
        return dict(jax.device_get(program(jax.random.key(seed), self._example_batch())))

    def new_head(self, seed: int) -> dict[str, Any]:
        """Returns a freshly initialised head on the host, {collection: tree}."""

        def initialise(key, batch):
            return head_of(self._network.layout, self._init(key, batch))

        # Under jit the compiler drops the backbone, whose start is not needed.
        program = self.once("head", lambda: Compiled(jax.jit(initialise)))
        return dict(jax.device_get(program(jax.random.key(seed), self._example_batch())))

    def _init(self, key: jax.Array, inputs: Any) -> Tree:
        model = self._network.model
        return nn.meta.unbox(model.init(key, inputs, **mode(model, train=False)))

    def _example_batch(self) -> Any:
        return jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), self._network.example)
