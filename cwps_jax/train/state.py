"""The state and the plan of a training step."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cwps_jax.core.trees import Tree
from cwps_jax.methods.method import Begun, Penalty, Stage
from cwps_jax.settings import TrainConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that changes from step to step; donated.

    Attributes:
        step: int32, steps since the task's beginning.
        own: {collection: nested dict}, the trained tree, float32.
        other: the model's other collections, such as batch_stats.
        average: moving averages of `own` and `other`, in the last stage with `config.ema`; else empty.
        optimizers: {collection: optax state}.
        lambda_base: float32, the part of the penalty's weight that the budget has built up.
        key: uint32 key of dropout.
    """

    step: jax.Array
    own: Tree
    other: Tree
    average: Tree
    optimizers: Mapping[str, Any]
    lambda_base: jax.Array
    key: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
    """The numbers for a stage's steps. All are traced, so other lengths or rates do not recompile.

    Attributes:
        stage_start: int32, the step at which the stage began.
        steps_per_epoch: int32.
        total_steps: int32, number of steps of all stages.
        warmup_steps: int32, number of steps over which the learning rates rise.
        rates: {collection: float32}, at the schedule's peak.
        ema: float32, share of the old average that each step keeps.
        free_steps: int32, steps of the stage in which lambda is zero.
        budget: float32; at 1 lambda is not steered.
        budget_rate: float32, change of lambda's base per unit of excess and step.
        budget_gain: float32, lambda per unit of excess.
    """

    stage_start: jax.Array
    steps_per_epoch: jax.Array
    total_steps: jax.Array
    warmup_steps: jax.Array
    rates: Mapping[str, jax.Array]
    ema: jax.Array
    free_steps: jax.Array
    budget: jax.Array
    budget_rate: jax.Array
    budget_gain: jax.Array


def make_plan(
    config: TrainConfig, stage: Stage, *, first_epoch: int, epochs: int, steps_per_epoch: int
) -> Plan:
    """Returns the plan of one stage, which begins with `first_epoch` of a task's `epochs`."""
    total_steps = epochs * steps_per_epoch
    penalty = stage.penalty or Penalty(0.0)
    return Plan(
        stage_start=jnp.int32(first_epoch * steps_per_epoch),
        steps_per_epoch=jnp.int32(steps_per_epoch),
        total_steps=jnp.int32(total_steps),
        warmup_steps=jnp.int32(round(config.learning_rate_warmup * total_steps)),
        rates={name: jnp.float32(group.rate) for name, group in stage.groups.items()},
        ema=jnp.float32(config.ema),
        free_steps=jnp.int32(penalty.free_epochs * steps_per_epoch),
        budget=jnp.float32(penalty.budget),
        budget_rate=jnp.float32(penalty.budget_rate / (stage.epochs * steps_per_epoch)),
        budget_gain=jnp.float32(penalty.budget_gain),
    )


def start_state(other: Tree, config: TrainConfig) -> TrainState:
    """Returns the state before a task's first stage, which trains nothing yet."""
    return TrainState(
        step=jnp.int32(0),
        own={},
        other=other,
        average={},
        optimizers={},
        lambda_base=jnp.float32(0),
        key=jax.random.key_data(jax.random.key(config.seed)),
    )


def moved_moments(state: TrainState, stage: Stage, begun: Begun) -> dict[str, Any]:
    """Returns {collection: the optimizer's state} of the collections whose moments a stage keeps.

    Trees in an optax state that are like the collection, such as momentum or Adam's moments, are cut as the
    collection is. An optimizer whose state has other trees, such as Adafactor's, does not fit a collection
    that has been cut, and starts again.

    Args:
        state: at the end of the stage before, on the host.
        stage: the stage.
        begun: what it begins with.
    """
    moved = {}
    for name, move in begun.carried.items():
        if name not in state.optimizers:
            continue
        like = _shapes(state.own[name])
        is_tree = lambda leaf, like=like: isinstance(leaf, Mapping) and _shapes(leaf) == like
        new = jax.tree.map(
            lambda leaf, move=move, is_tree=is_tree: move(leaf) if is_tree(leaf) else leaf,
            state.optimizers[name],
            is_leaf=is_tree,
        )
        if _shapes(new) == _shapes(jax.eval_shape(stage.groups[name].optimizer.init, begun.own[name])):
            moved[name] = new
    return moved


def _shapes(tree: Any) -> Any:
    return jax.tree.map(jnp.shape, tree)


def begun_state(state: TrainState, stage: Stage, begun: Begun, optimizers: Mapping[str, Any]) -> TrainState:
    """Returns the state before a stage's first step.

    Args:
        state: at the end of the stage before, on the host.
        stage: the stage.
        begun: what it begins with.
        optimizers: {collection: the optimizer's state before the first step}.
    """
    lambda_base = state.lambda_base
    if stage.penalty:
        lambda_base = jnp.float32(stage.penalty.weight if stage.penalty.budget == 1 else 0.0)
    return dataclasses.replace(
        state, own=begun.own, optimizers=dict(optimizers), average={}, lambda_base=lambda_base
    )
