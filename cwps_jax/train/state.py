"""What a step carries, and what it is told."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cwps_jax.config import TrainConfig
from cwps_jax.core.channels import Layout
from cwps_jax.core.compact import Capacity, pack, placements
from cwps_jax.core.trees import Tree, map_with_path
from cwps_jax.methods.method import Frozen, Stage

RATED_STAGES = ("warm-up", "soft", "hard")  # those of config.stage_rates, in their order


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that changes from step to step; donated.

    Attributes:
        step: int32, steps since the task's beginning.
        child: nested dict, the child's parameters, float32; packed in a compact stage.
        masks: nested dict, the scores; empty outside the soft stage.
        other: the model's other collections, such as batch_stats.
        average: moving averages of the child, as "params", and of `other`, in the last stage with
            `config.ema`; else empty.
        child_optimizer, score_optimizer: optax states.
        lambda_base: float32, the part of the penalty's weight that the budget has built up.
        key: uint32 key of dropout.
    """

    step: jax.Array
    child: Tree
    masks: Tree
    other: Tree
    average: Tree
    child_optimizer: Any
    score_optimizer: Any
    lambda_base: jax.Array
    key: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
    """What a stage's steps are told, all traced: other lengths or rates do not recompile.

    Attributes:
        stage_start: int32, the step at which the stage began.
        steps_per_epoch: int32.
        total_steps: int32, of all stages.
        warmup_steps: int32, over which the learning rate rises.
        learning_rate, score_learning_rate: float32, at the schedule's peak.
        ema: float32, share of the old average that each step keeps.
        budget: float32; at 1 lambda is not steered.
        budget_rate: float32, change of lambda's base per unit of excess and step.
        budget_gain: float32, lambda per unit of excess.
        max_temperature: float32, s_max.
    """

    stage_start: jax.Array
    steps_per_epoch: jax.Array
    total_steps: jax.Array
    warmup_steps: jax.Array
    learning_rate: jax.Array
    score_learning_rate: jax.Array
    ema: jax.Array
    budget: jax.Array
    budget_rate: jax.Array
    budget_gain: jax.Array
    max_temperature: jax.Array


def make_plan(
    config: TrainConfig, stage: Stage, *, first_epoch: int, epochs: int, steps_per_epoch: int
) -> Plan:
    """Returns the plan of one stage, which begins with `first_epoch` of a task's `epochs`."""
    total_steps = epochs * steps_per_epoch
    factor = dict(zip(RATED_STAGES, config.stage_rates, strict=True)).get(stage.name, 1.0)
    return Plan(
        stage_start=jnp.int32(first_epoch * steps_per_epoch),
        steps_per_epoch=jnp.int32(steps_per_epoch),
        total_steps=jnp.int32(total_steps),
        warmup_steps=jnp.int32(round(config.learning_rate_warmup * total_steps)),
        learning_rate=jnp.float32(config.learning_rate * factor),
        score_learning_rate=jnp.float32(config.score_learning_rate),
        ema=jnp.float32(config.ema),
        budget=jnp.float32(config.budget),
        budget_rate=jnp.float32(config.budget_rate / (stage.epochs * steps_per_epoch)),
        budget_gain=jnp.float32(config.budget_gain),
        max_temperature=jnp.float32(config.max_temperature),
    )


def start_state(child: Tree, other: Tree, child_optimizer: Any, config: TrainConfig) -> TrainState:
    """Returns the state before a task's first step; `child_optimizer` is the optax state to start with."""
    return TrainState(
        step=jnp.int32(0),
        child=child,
        masks={},
        other=other,
        average={},
        child_optimizer=child_optimizer,
        score_optimizer=(),
        lambda_base=jnp.float32(config.lambda_ if config.budget == 1 else 0.0),
        key=jax.random.key_data(jax.random.key(config.seed)),
    )


def compact_state(
    state: TrainState, frozen: Frozen, layout: Layout, capacity: Capacity
) -> tuple[TrainState, Frozen]:
    """Returns a state whose child and moments hold open channels alone, and where those belong.

    Args:
        state: on the host, with a whole child.
        frozen: with the hard gates.
        layout: the backbone's layout.
        capacity: {path of a kernel: channels that there is room for}.
    """
    placed = placements(layout, frozen.gates, capacity)
    gates = jax.device_get(frozen.gates)

    def packed(leaf: Any) -> Any:
        return pack(leaf, gates, placed) if is_tree(leaf) else leaf

    # In an optax state, what is a dict has the child's structure: momentum, or Adam's moments.
    is_tree = lambda leaf: isinstance(leaf, Mapping)
    moments = jax.tree.map(packed, state.child_optimizer, is_leaf=is_tree)
    state = dataclasses.replace(state, child=packed(state.child), child_optimizer=moments)
    return state, dataclasses.replace(frozen, placed=placed)


def in_cast_types(frozen: Frozen, types: Mapping[str, Any]) -> Frozen:
    """Returns what a compact stage reads with the parent in the types that the model casts it to.

    Selection commutes with a cast, so that the stage computes the same to the bit from half the bytes.

    Args:
        frozen: on the host.
        types: {path: dtype}, see `tracing.cast_types`.
    """
    cast = lambda path, leaf: np.asarray(leaf).astype(types[path]) if path in types else leaf
    return dataclasses.replace(frozen, parent=map_with_path(cast, frozen.parent))
