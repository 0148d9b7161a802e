"""The training step: one function for every stage of every method, under jit and under pmap."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cwps_jax import parallel, tracing
from cwps_jax.active_gradient import active_gradients
from cwps_jax.config import TrainConfig
from cwps_jax.core import masks as core_masks
from cwps_jax.core.channels import Layout
from cwps_jax.core.trees import Tree, map_with_path
from cwps_jax.data.preparation import Preparation, mixed
from cwps_jax.methods.method import Frozen, Stage
from cwps_jax.modules import batch_norm_overrides
from cwps_jax.train.objectives import Objective
from cwps_jax.train.optimizer import child_optimizer, rate, score_optimizer
from cwps_jax.train.state import Plan, TrainState

Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, Frozen, Plan, Mapping[str, jax.Array]], tuple[TrainState, Metrics]]


def apply_model(
    model: nn.Module, params: Tree, other: Tree, images: jax.Array, *, train: bool, **options: Any
) -> Any:
    """Applies a Linen model, in training or inference mode where it has both."""
    return model.apply({"params": params, **other}, images, **tracing.mode(model, train=train), **options)


def make_step(
    stage: Stage,
    model: nn.Module,
    layout: Layout,
    config: TrainConfig,
    loss: Objective,
    metric: Objective,
    axis_name: str | None = None,
    depths: Mapping[str, int] | None = None,
    preparation: Preparation = Preparation(),
) -> Step:
    """Returns the step of a stage: batch -> mix -> model -> loss + lambda * sparsity -> update.

    Args:
        stage: whose rule computes the effective parameters.
        model: the plain backbone with its head.
        layout: its layout.
        config: the task's config; only what is not in `Plan` matters.
        loss, metric: functions of (outputs, batch) to one value per item.
        axis_name: the axis to average over under pmap, None under jit.
        depths: {path: depth} of every parameter, for `config.layer_decay`.
        preparation: what is done to a batch first.
    """
    loss = mixed(loss)
    child_rule, score_rule = child_optimizer(config, layout, depths), score_optimizer(config)
    head = set(layout.head_paths)

    def steer(state: TrainState, plan: Plan) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns lambda, its base for the next step, and the ratio that the gates ask for now."""
        if not stage.penalised:
            return state.lambda_base, state.lambda_base, jnp.float32(1)
        ratio = core_masks.params_ratio(core_masks.gates(state.masks, estimator=config.estimator), layout)
        steered = core_masks.steer(state.lambda_base, ratio, plan.budget, plan.budget_rate, plan.budget_gain)
        lambda_, base = jax.tree.map(lambda one: jnp.where(plan.budget < 1, one, state.lambda_base), steered)
        return lambda_, base, ratio

    def objective(child, masks, lambda_, state, frozen, batch, temperature):
        if not stage.trains_backbone:
            child = map_with_path(lambda p, x: x if p in head else jax.lax.stop_gradient(x), child)
        effective, gates = stage.effective(child, masks, frozen, temperature)
        key = step_key(state)
        with contextlib.ExitStack() as overrides:
            if axis_name:
                overrides.enter_context(batch_norm_overrides(axis_name=axis_name))
            if stage.compact:
                overrides.enter_context(
                    active_gradients(effective, child, frozen.parent, frozen.gates, frozen.placed)
                )
            outputs, changed = apply_model(
                model,
                effective,
                state.other,
                batch["image"],
                train=stage.trains_backbone,
                mutable=list(state.other) if stage.trains_backbone else [],
                rngs={"dropout": parallel.own_key(key, axis_name)},
            )
        task_loss = total = jnp.mean(loss(outputs, batch))
        if stage.penalised and gates is not None:
            total += lambda_ * core_masks.sparsity(gates, child)
        return total, (task_loss, jnp.mean(metric(outputs, batch)), changed, gates)

    def step(state: TrainState, frozen: Frozen, plan: Plan, batch: Mapping[str, jax.Array]):
        batch = preparation.mix(
            {**batch, "image": preparation.normalise(batch["image"])}, jax.random.fold_in(step_key(state), 1)
        )
        position = (state.step - plan.stage_start) % plan.steps_per_epoch
        temperature = core_masks.temperature(position, plan.steps_per_epoch, plan.max_temperature)
        lambda_, next_base, ratio = steer(state, plan)
        gradient = jax.grad(objective, argnums=(0, 1), has_aux=True)
        (child_gradient, score_gradient), (task_loss, measured, changed, gates) = gradient(
            state.child, state.masks, lambda_, state, frozen, batch, temperature
        )
        child_gradient, score_gradient, task_loss, measured, changed = jax.tree.map(
            lambda value: parallel.mean(value, axis_name),
            (child_gradient, score_gradient, task_loss, measured, dict(changed)),
        )
        schedule = rate(state.step, plan.total_steps, plan.warmup_steps, jnp.float32(1))

        held = None if stage.compact else gates  # what is packed is all the task's own
        updates, child_state = child_rule.update(
            child_gradient, state.child_optimizer, state.child, gates=held
        )
        if not stage.trains_backbone:
            updates = map_with_path(lambda p, u: u if p in head else jnp.zeros_like(u), updates)
        if held is not None:
            updates = core_masks.hold_closed(updates, held)
        step_size = plan.learning_rate * schedule
        child = jax.tree.map(lambda p, u: p - step_size * u, state.child, updates)

        masks, score_state = state.masks, state.score_optimizer
        if stage.penalised:
            moves, score_state = score_rule.update(score_gradient, score_state)
            step_size = plan.score_learning_rate * schedule
            masks = core_masks.clip(jax.tree.map(lambda e, u: e - step_size * u, masks, moves))
        elif gates is not None:
            ratio = core_masks.params_ratio(gates, layout)
        other = {**state.other, **changed}
        average = state.average and move_average(state.average, {"params": child, **other}, plan.ema)
        metrics = {"loss": task_loss, "metric": measured, "private": ratio, "lambda": lambda_}
        state = TrainState(
            step=state.step + 1,
            child=child,
            masks=masks,
            other=other,
            average=average,
            child_optimizer=child_state,
            score_optimizer=score_state,
            lambda_base=next_base,
            key=state.key,
        )
        return state, metrics

    return step


def move_average(average: Tree, new: Tree, keep: jax.Array) -> Tree:
    """Returns keep * average + (1 - keep) * new; what is not a number with a fraction is new.

    Written as a step towards the new, so that a leaf that does not move stays as it is to the bit.
    """

    def move(old: jax.Array, new: jax.Array) -> jax.Array:
        if not jnp.issubdtype(old.dtype, jnp.inexact):
            return new
        return old + ((1 - keep) * (new - old)).astype(old.dtype)

    return jax.tree.map(move, average, new)


def step_key(state: TrainState) -> jax.Array:
    """Returns the key of a step's randomness, the same on every device."""
    return jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)


def make_norm_step(
    stage: Stage,
    model: nn.Module,
    axis_name: str | None = None,
    preparation: Preparation = Preparation(),
) -> Callable[[TrainState, Frozen, jax.Array, Mapping[str, jax.Array]], Tree]:
    """Returns a function that gives the model's norm statistics of one batch alone, and takes its number."""

    def statistics(
        state: TrainState, frozen: Frozen, number: jax.Array, batch: Mapping[str, jax.Array]
    ) -> Tree:
        effective, _ = stage.effective(state.child, state.masks, frozen, jnp.float32(1))
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), number)
        # From zeros: statistics of before have no weight, but 0 times what is not a number is none.
        blank = {**state.other, "batch_stats": jax.tree.map(jnp.zeros_like, state.other["batch_stats"])}
        with batch_norm_overrides(axis_name=axis_name, momentum=0.0):
            _, changed = apply_model(
                model,
                effective,
                blank,
                preparation.normalise(batch["image"]),
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": parallel.own_key(key, axis_name)},
            )
        return jax.tree.map(lambda value: parallel.mean(value, axis_name), dict(changed))

    return statistics
