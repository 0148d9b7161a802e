"""Optimizers without their learning rates, and updates that never move a channel the task does not own.

Equal optimizers are the same object, because the trainer distinguishes compiled steps by it.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cwps_jax.core.channels import Layout, gates_by_leaf
from cwps_jax.core.masks import hold_closed
from cwps_jax.core.trees import map_with_path
from cwps_jax.errors import CwpsError
from cwps_jax.methods.network import Network
from cwps_jax.settings import TrainConfig


@functools.cache
def sgd(momentum: float = 0.9, weight_decay: float = 0.0) -> optax.GradientTransformation:
    """Returns SGD with momentum, with weight decay on every leaf."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.trace(momentum))


@functools.cache
def adam(b2: float = 0.999, weight_decay: float = 0.0, clip: float = 0.0) -> optax.GradientTransformation:
    """Returns Adam, with decoupled weight decay (AdamW), and gradients clipped to a global norm."""
    return optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        optax.scale_by_adam(b2=b2),
        optax.add_decayed_weights(weight_decay),
    )


def by_config(training: TrainConfig, network: Network) -> optax.GradientTransformationExtraArgs:
    """Returns the config's optimizer of a model's own leaves, whose rate is `training.peak`.

    Its `update` takes `gates=`. Weight decay acts only on the kernels of layers and head, times the gate of
    each channel; a given optax transformation has its own weight decay.

    Args:
        training: the task's config.
        network: the backbone, which knows its kernels and their depths.
    """
    depths = network.depths if training.layer_decay < 1 else {}
    settings = (training.optimizer, training.momentum, training.weight_decay, training.layer_decay)
    return network.remembered(
        ("optimizer", *settings), lambda: child_optimizer(training, network.layout, depths)
    )


def child_optimizer(
    config: TrainConfig, layout: Layout, depths: Mapping[str, int] | None = None
) -> optax.GradientTransformationExtraArgs:
    """Returns a new optimizer like that of `by_config`.

    Args:
        config: the task's config.
        layout: which leaves are kernels.
        depths: {path: depth} of every leaf, for `config.layer_decay`.
    """
    decay = gated_weight_decay(config.weight_decay, layout)
    rules: list[optax.GradientTransformation]
    if isinstance(config.optimizer, optax.GradientTransformation):
        rules = [config.optimizer, optax.scale(-1.0)]  # its updates are added, and a step subtracts
    elif config.optimizer == "adamw":
        rules = [optax.scale_by_adam(), decay]
    else:
        rules = [decay, optax.trace(config.momentum)]
    if config.layer_decay < 1:
        rules.append(scale_by_depth(config.layer_decay, depths or {}))
    return optax.chain(*rules, held_closed())


def held_closed() -> optax.GradientTransformationExtraArgs:
    """Returns what zeroes the updates of closed channels; `update` takes `gates=`, None for all open."""

    def update(updates, state, params=None, *, gates=None, **_):
        return (hold_closed(updates, gates) if gates else updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


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
