"""Updates that never move a channel the task does not own."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cwps_jax.config import TrainConfig
from cwps_jax.core.channels import Layout, gates_by_leaf
from cwps_jax.core.trees import map_with_path
from cwps_jax.errors import CwpsError


def child_optimizer(
    config: TrainConfig, layout: Layout, depths: Mapping[str, int] | None = None
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer of the child, without its learning rate; `update` takes `gates=`.

    Weight decay acts on the kernels of layers and head alone, times the gate of each channel.

    Args:
        config: the task's config.
        layout: which leaves are kernels.
        depths: {path: depth} of every leaf, for `config.layer_decay`.
    """
    decay = gated_weight_decay(config.weight_decay, layout)
    if config.optimizer == "adamw":
        rules = [optax.scale_by_adam(), decay]
    else:
        rules = [decay, optax.trace(config.momentum)]
    if config.layer_decay < 1:
        rules.append(scale_by_depth(config.layer_decay, depths or {}))
    return optax.chain(*rules)


def score_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Returns the optimizer of the scores, without its learning rate; it has no weight decay."""
    if config.score_optimizer == "adam":
        # A short memory: lambda's first jump must not slow the scores down for a thousand steps.
        return optax.scale_by_adam(b2=0.9)
    return optax.trace(config.momentum)


def gated_weight_decay(rate: float, layout: Layout) -> optax.GradientTransformationExtraArgs:
    """Returns weight decay on kernels, times the stopped gradient of their gates.

    Args:
        rate: the decay.
        layout: which leaves are kernels.

    The transformation's `update` takes `gates=`, a tree of gates or None for all open.
    """
    head_kernels = {path for path, shape in layout.head if len(shape) > 1}
    kernels = {layer.path for layer in layout.layers} | head_kernels

    def update(updates, state, params=None, *, gates=None, **_):
        if not rate:
            return updates, state
        by_leaf: Mapping[str, Any] = gates_by_leaf(gates, params) if gates else {}

        def decay(path: str, leaf: jax.Array) -> jax.Array:
            gate = by_leaf.get(path)
            openness = 1.0 if gate is None else jax.lax.stop_gradient(gate).astype(leaf.dtype)
            return rate * openness * leaf if path in kernels else jnp.zeros_like(leaf)

        decays = map_with_path(decay, params)
        return jax.tree.map(jnp.add, updates, decays), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def scale_by_depth(decay: float, depths: Mapping[str, int]) -> optax.GradientTransformation:
    """Returns layer-wise learning-rate decay: each leaf's update times decay ** (deepest - its depth).

    Args:
        decay: factor from a depth to the one before it, in (0, 1].
        depths: {path: depth} of every leaf, see `tracing.parameter_depths`.
    """
    deepest = max(depths.values(), default=0)

    def scale(path: str, update: jax.Array) -> jax.Array:
        if path not in depths:
            raise CwpsError(f"{path}: layer_decay = {decay} needs its depth; see tracing.parameter_depths")
        return decay ** (deepest - depths[path]) * update

    return optax.stateless(lambda updates, params: map_with_path(scale, updates))


def rate(step: jax.Array, total_steps: jax.Array, warmup_steps: jax.Array, peak: jax.Array) -> jax.Array:
    """Returns the learning rate of a step: a linear rise, then a half cosine to zero at the end.

    Written out because all of it is traced, so that tasks of any length share compiled steps.
    """
    rise = (step + 1) / jnp.maximum(warmup_steps, 1)
    progress = (step - warmup_steps) / jnp.maximum(total_steps - warmup_steps, 1)
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))
    return peak * jnp.where(step < warmup_steps, rise, cosine)
