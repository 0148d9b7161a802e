"""Gradients of a batch in several parts, one after the other, for batches that do not fit into memory."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cwps_jax.core.trees import Tree
from cwps_jax.train.state import TrainState

Batch = Mapping[str, jax.Array]
# (state, batch) -> (gradients, (means over the batch, collections that the model changed, all else)).
Gradient = Callable[[TrainState, Batch], tuple[Tree, tuple[Any, Tree, Any]]]


def accumulated(gradient: Gradient, count: int, group: int) -> Gradient:
    """Returns the function that takes gradients part by part: their mean, and the means' mean.

    That is the whole batch's gradient, except for operations over several items: each part is normalised by
    its own statistics, which are updated once per part, and draws its own dropout.

    Args:
        gradient: of one batch.
        count: parts of a batch; 1 is the function itself.
        group: number of consecutive items that have to stay in one part.
    """
    if count == 1:
        return gradient

    def parts(leaf: jax.Array) -> jax.Array:
        # Every count-th group: so each device takes its parts from what it has.
        split = leaf.reshape(-1, count, group, *leaf.shape[1:])
        return jnp.swapaxes(split, 0, 1).reshape(count, -1, *leaf.shape[1:])

    def by_parts(state: TrainState, batch: Batch) -> tuple[Tree, tuple[Any, Tree, Any]]:
        def add(carry: Any, numbered: tuple[jax.Array, Batch]) -> tuple[Any, None]:
            sums, changed, _ = carry
            number, part = numbered
            key = jax.random.fold_in(jax.random.wrap_key_data(state.key), number)
            begun = dataclasses.replace(state, other={**state.other, **changed}, key=jax.random.key_data(key))
            gradients, (means, changed, rest) = gradient(begun, part)
            return (jax.tree.map(jnp.add, sums, (gradients, means)), changed, rest), None

        split = jax.tree.map(parts, dict(batch))
        first = jax.tree.map(lambda leaf: leaf[0], split)
        gradients, (means, changed, rest) = jax.tree.map(
            lambda one: jnp.zeros(one.shape, one.dtype), jax.eval_shape(gradient, state, first)
        )
        start = (gradients, means), {name: state.other[name] for name in changed}, rest
        (sums, changed, rest), _ = jax.lax.scan(add, start, (jnp.arange(count), split))
        gradients, means = jax.tree.map(lambda one: one / count, sums)
        return gradients, (means, changed, rest)

    return by_parts
