"""Scores and gates: annealing, straight-through, and sparsity.

A *score* is a trained real number for each output channel. A *gate* is computed from it: the share of the
child in that channel, in [0, 1]; 0 or 1 once hard. Both are in nested dicts under the paths of the kernels.
With gates by layer, a kernel's score has one number, in an array of the kernel's rank; with gates by weight,
every leaf of a layer has scores in its own shape.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from cwps_jax.core.channels import Layout, gates_by_leaf
from cwps_jax.core.trees import Tree, flatten, map_with_path, unflatten
from cwps_jax.errors import CwpsError

Estimator = Literal["annealed", "straight_through"]
Grain = Literal["channel", "layer", "weight"]

MAX_TEMPERATURE = 100.0  # s_max of Yan et al. 2021 (DER)
SCORE_LIMIT = 6.0  # scores stay in [-6, 6], so that a closed channel can still come back (HAT)
START = {"annealed": 0.0, "straight_through": 0.15}
THRESHOLD = {"annealed": 0.0, "straight_through": 0.1}  # TAPS's threshold for the second


def init_scores(
    layout: Layout, estimator: Estimator = "annealed", grain: Grain = "channel"
) -> dict[str, jax.Array]:
    """Returns the starting scores, float32, one for each output channel of every layer.

    Args:
        layout: the backbone's layout.
        estimator: how scores become gates.
        grain: the unit of one score: "channel", "layer" or "weight".
    """
    if grain == "weight":
        shapes = {
            leaf: shape for one in layout.layers for leaf, shape in zip(one.leaves, one.shapes, strict=True)
        }
    elif grain == "layer":
        shapes = {layer.path: (1,) * len(layer.gate_shape) for layer in layout.layers}
    else:
        shapes = {layer.path: layer.gate_shape for layer in layout.layers}
    return unflatten({path: jnp.full(shape, START[estimator], jnp.float32) for path, shape in shapes.items()})


def spread(gates: Tree, layout: Layout) -> dict[str, jax.Array]:
    """Returns the gates, with the gate of a whole layer repeated for each of its channels."""
    flat = flatten(gates)
    for layer in layout.layers:
        if flat[layer.path].size == 1:
            flat[layer.path] = jnp.broadcast_to(flat[layer.path], layer.gate_shape)
    return unflatten(flat)


def temperature(
    batch: jax.Array, batches: jax.Array, maximum: float | jax.Array = MAX_TEMPERATURE
) -> jax.Array:
    """Returns s, float32 (), annealed linearly in an epoch from 1/s_max to s_max (Yan et al. 2021, eq. 9).

    Args:
        batch: index of the batch in its epoch, from 0.
        batches: batches in an epoch; with one batch s is s_max.
        maximum: s_max.
    """
    maximum = jnp.asarray(maximum, jnp.float32)
    progress = batch / jnp.maximum(batches - 1, 1)
    annealed = 1 / maximum + (maximum - 1 / maximum) * progress
    return jnp.where(batches > 1, annealed, maximum)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _annealed(score: jax.Array, temperature: jax.Array, maximum: float) -> jax.Array:
    return jax.nn.sigmoid(temperature * score)


@_annealed.defjvp
def _annealed_jvp(maximum, primals, tangents):
    # HAT divides by the annealed sigmoid's slope; multiplied out the temperature cancels, and so does
    # a quotient of cosh that overflows float32.
    score, temperature = primals
    slope = maximum * jax.nn.sigmoid(score) * jax.nn.sigmoid(-score)
    return _annealed(score, temperature, maximum), slope * tangents[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def straight_through(score: jax.Array, threshold: float = THRESHOLD["straight_through"]) -> jax.Array:
    """Returns 1 where a score is at least the threshold, else 0, in the score's type; its derivative is 1."""
    return (score >= threshold).astype(score.dtype)


@straight_through.defjvp
def _straight_through_jvp(threshold, primals, tangents):
    return straight_through(primals[0], threshold), tangents[0]


def gates(
    scores: Tree,
    temperature: float | jax.Array | None = None,
    *,
    estimator: Estimator = "annealed",
    compensate: bool = True,
    maximum: float = MAX_TEMPERATURE,
) -> dict[str, jax.Array]:
    """Returns the gates of the scores.

    Args:
        scores: nested dict of float arrays.
        temperature: s of the annealed sigmoid; it may be traced, so annealing never recompiles. None gives
            hard, boolean gates: score > 0 (annealed) or score >= 0.1 (straight-through).
        estimator: "annealed": sigmoid(s * score). "straight_through": a threshold whose derivative is 1.
        compensate: whether the annealed derivative is HAT's compensated one (Serra et al. 2018, eq. 5), s_max
            * sigmoid(e) * (1 - sigmoid(e)), which does not depend on s. Otherwise it is that of the sigmoid.
        maximum: s_max, for the compensation.

    Raises:
        CwpsError: unknown estimator.

    Examples:
        >>> import jax.numpy as jnp
        >>> gates({"kernel": jnp.array([[-1.0, 2.0]])})["kernel"].tolist()
        [[False, True]]
    """
    return jax.tree.map(
        _gate_function(estimator, temperature, compensate=compensate, maximum=maximum), dict(scores)
    )


def _gate_function(
    estimator: Estimator, temperature: float | jax.Array | None, *, compensate: bool, maximum: float
) -> Callable[[jax.Array], jax.Array]:
    if estimator == "annealed":
        if temperature is None:
            return lambda score: score > THRESHOLD["annealed"]
        if compensate:
            return lambda score: _annealed(score, jnp.asarray(temperature, score.dtype), maximum)
        return lambda score: jax.nn.sigmoid(temperature * score)
    if estimator == "straight_through":
        if temperature is None:
            return lambda score: score >= THRESHOLD["straight_through"]
        return straight_through
    raise CwpsError(f"estimator {estimator!r}: choose 'annealed' or 'straight_through'")


def clip(scores: Tree) -> dict[str, jax.Array]:
    """Returns the scores clipped to [-6, 6]."""
    return jax.tree.map(lambda score: jnp.clip(score, -SCORE_LIMIT, SCORE_LIMIT), dict(scores))


def sparsity(gates: Tree, params: Tree) -> jax.Array:
    """Returns the share of the layers' parameters that are the task's own, float32 () (METHOD's penalty).

    sum_l n_l mean_c(gate[l, c]) / sum_l n_l, with n_l the parameters of layer l: in [0, 1] for every
    backbone, 0 with all gates off and 1 with all on.

    Args:
        gates: nested dict of gates, float or bool.
        params: nested dict, the backbone's parameters or their shapes.
    """
    sizes = {path: math.prod(leaf.shape) for path, leaf in flatten(params).items()}
    by_leaf = gates_by_leaf(gates, params)
    total = max(sum(sizes[path] for path in by_leaf), 1)
    means = [sizes[path] / total * jnp.mean(gate, dtype=jnp.float32) for path, gate in by_leaf.items()]
    return jnp.sum(jnp.stack(means)) if means else jnp.zeros(())


def all_gates(layout: Layout, value: bool) -> dict[str, jax.Array]:
    """Returns hard gates that are all on (fine-tuning) or all off (feature extraction)."""
    return unflatten({layer.path: jnp.full(layer.gate_shape, value) for layer in layout.layers})


def hold_closed(updates: Tree, gates: Tree) -> dict[str, jax.Array]:
    """Returns the updates with those of every closed channel (gate 0) set to exact zeros.

    Without it, weight decay and momentum would move a channel that gets no gradient.
    """
    by_leaf = gates_by_leaf(gates, updates)

    def hold(path: str, update: jax.Array) -> jax.Array:
        return jnp.where(by_leaf[path] > 0, update, 0) if path in by_leaf else update

    return map_with_path(hold, updates)
