"""The training step: one function for every stage of every method, under jit and under pmap."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cwps_jax import parallel, tracing
from cwps_jax.core import budgets
from cwps_jax.core.trees import Tree
from cwps_jax.data.preparation import Preparation, blended
from cwps_jax.inputs import inputs_of
from cwps_jax.methods.method import Clock, Effective, Stage
from cwps_jax.methods.schedules import Schedule
from cwps_jax.modules import batch_norm_overrides
from cwps_jax.train.accumulation import accumulated
from cwps_jax.train.objectives import Objective
from cwps_jax.train.state import Plan, TrainState

Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, Tree, Plan, Mapping[str, jax.Array]], tuple[TrainState, Metrics]]


def apply_model(
    model: nn.Module, params: Tree, other: Tree, inputs: Any, *, train: bool, **options: Any
) -> Any:
    """Applies a Linen model, in training or inference mode where it has both."""
    return model.apply({"params": params, **other}, inputs, **tracing.mode(model, train=train), **options)


def make_step(
    stage: Stage,
    model: nn.Module,
    loss: Objective,
    metric: Objective,
    axis_name: str | None = None,
    preparation: Preparation = Preparation(),
    accumulate: int = 1,
    whole: Callable[[Tree], Tree] = lambda params: params,
) -> Step:
    """Returns the step of a stage: batch -> rule -> model -> loss + lambda * penalty -> update.

    Args:
        stage: the stage, whose rule computes the effective parameters, and whose optimizers update the
            trained tree.
        model: the applied model: the plain backbone with its head, or the method's wrapper of it. Values that
            it sows into "losses" are added to the loss.
        loss, metric: functions of (outputs, batch) to one value per item.
        axis_name: the axis to average over under pmap, None under jit.
        preparation: the preparation of a batch, done first.
        accumulate: number of parts in which the gradient of a batch is computed.
        whole: gathers the effective parameters if they are spread over the devices.
    """
    loss = blended(stage.loss(loss))

    def steered(kept: jax.Array | None, state: TrainState, plan: Plan) -> tuple[jax.Array, jax.Array]:
        """Returns lambda, and its base for the next step."""
        if stage.penalty is None or kept is None:
            return state.lambda_base, state.lambda_base
        found = budgets.steer(state.lambda_base, kept, plan.budget, plan.budget_rate, plan.budget_gain)
        lambda_, base = jax.tree.map(lambda one: jnp.where(plan.budget < 1, one, state.lambda_base), found)
        return jnp.where(state.step - plan.stage_start < plan.free_steps, 0, lambda_), base

    def objective(own, state, frozen, plan, batch):
        clock = Clock((state.step - plan.stage_start) % plan.steps_per_epoch, plan.steps_per_epoch)
        own = stage.seen(own, frozen)
        effective = stage.rule(own, frozen, clock)
        effective = dataclasses.replace(effective, params=whole(effective.params))
        lambda_, next_base = steered(jax.lax.stop_gradient(effective.kept), state, plan)
        with contextlib.ExitStack() as contexts:
            if axis_name:
                contexts.enter_context(batch_norm_overrides(axis_name=axis_name))
            contexts.enter_context(stage.context(effective, own, frozen))
            outputs, changed = apply_model(
                model,
                effective.params,
                {**state.other, **effective.added},
                inputs_of(model, batch),
                train=not stage.inference,
                mutable=["losses", *(() if stage.inference else state.other)],
                rngs=random_keys(parallel.own_key(step_key(state), axis_name)),
            )
        changed = dict(changed)
        task_loss = total = jnp.mean(loss(outputs, batch))
        sown = jax.tree.leaves(changed.pop("losses", {}))
        total += sum(map(jnp.mean, sown))
        if stage.penalty is not None and effective.penalty is not None:
            total += lambda_ * effective.penalty
        measured = jnp.mean(metric(outputs, batch))
        rest = effective.gates, effective.kept, lambda_, next_base
        return total, ((task_loss, measured), changed, rest)

    def step(state: TrainState, frozen: Tree, plan: Plan, batch: Mapping[str, jax.Array]):
        batch = preparation.blend(
            {**batch, "image": preparation.normalise(batch["image"])}, jax.random.fold_in(step_key(state), 1)
        )

        def gradient(state: TrainState, batch: Mapping[str, jax.Array]):
            return jax.grad(objective, has_aux=True)(state.own, state, frozen, plan, batch)

        gradients, ((task_loss, measured), changed, (gates, kept, lambda_, next_base)) = accumulated(
            gradient, accumulate, preparation.group
        )(state, batch)
        gradients, task_loss, measured, changed = jax.tree.map(
            lambda value: parallel.mean(value, axis_name), (gradients, task_loss, measured, changed)
        )
        pace = rate(state.step, plan.total_steps, plan.warmup_steps, stage.schedule)
        own: dict[str, Any] = {}
        optimizers: dict[str, Any] = {}
        for name, group in stage.groups.items():
            rule = optax.with_extra_args_support(group.optimizer)
            updates, optimizers[name] = rule.update(
                gradients[name], state.optimizers[name], state.own[name], gates=gates
            )
            step_size = plan.rates[name] * pace
            own[name] = jax.tree.map(lambda p, u, size=step_size: p - size * u, state.own[name], updates)
        own, other = dict(stage.project(own)), {**state.other, **changed}
        metrics = {
            "loss": task_loss,
            "metric": measured,
            "private": jnp.float32(1) if kept is None else kept,
            "lambda": lambda_,
        }
        state = TrainState(
            step=state.step + 1,
            own=own,
            other=other,
            average=state.average and move_average(state.average, {"own": own, "other": other}, plan.ema),
            optimizers=optimizers,
            lambda_base=next_base,
            key=state.key,
        )
        return state, metrics

    return step


def rate(step: jax.Array, total_steps: jax.Array, warmup_steps: jax.Array, schedule: Schedule) -> jax.Array:
    """Returns a step's share of the peak learning rates: a linear rise, then the schedule to the end.

    All of it is traced, so tasks of any length share compiled steps.
    """
    rise = (step + 1) / jnp.maximum(warmup_steps, 1)
    progress = (step - warmup_steps) / jnp.maximum(total_steps - warmup_steps, 1)
    return jnp.where(step < warmup_steps, rise, schedule(jnp.clip(progress, 0.0, 1.0)))


def move_average(average: Tree, new: Tree, keep: jax.Array) -> Tree:
    """Returns keep * average + (1 - keep) * new for floats; leaves of other types are the new ones."""

    def move(old: jax.Array, new: jax.Array) -> jax.Array:
        if not jnp.issubdtype(old.dtype, jnp.inexact):
            return new
        return optax.incremental_update(new, old, 1 - keep).astype(old.dtype)

    return jax.tree.map(move, average, new)


def step_key(state: TrainState) -> jax.Array:
    """Returns the key of a step's randomness, the same on every device."""
    return jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)


def random_keys(key: jax.Array) -> dict[str, jax.Array]:
    """Returns a model's random keys; for other names Linen uses that of "params"."""
    return {"dropout": key, "params": jax.random.fold_in(key, 0)}


def make_norm_step(
    stage: Stage,
    model: nn.Module,
    axis_name: str | None = None,
    preparation: Preparation = Preparation(),
) -> Callable[[TrainState, Tree, jax.Array, Mapping[str, jax.Array]], Tree]:
    """Returns a function that takes a batch and its number, and returns the norm statistics after it.

    The statistics of `nn.BatchNorm` are those of the batch, if they were finite before; a module of another
    class uses its own momentum, see `norms.estimated`.
    """

    def statistics(
        state: TrainState, frozen: Tree, number: jax.Array, batch: Mapping[str, jax.Array]
    ) -> Tree:
        effective = at_the_end(stage, stage.seen(state.own, frozen), frozen)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), number)
        with batch_norm_overrides(axis_name=axis_name, momentum=0.0):
            _, changed = apply_model(
                model,
                effective.params,
                {**state.other, **effective.added},
                inputs_of(model, {**batch, "image": preparation.normalise(batch["image"])}),
                train=True,
                mutable=["batch_stats"],
                rngs=random_keys(parallel.own_key(key, axis_name)),
            )
        return jax.tree.map(lambda value: parallel.mean(value, axis_name), dict(changed))

    return statistics


def at_the_end(stage: Stage, own: Tree, frozen: Tree) -> Effective:
    """Returns the result of a stage's rule at the end of an epoch."""
    return stage.rule(own, frozen, Clock(jnp.int32(0), jnp.int32(1)))
