"""Budgets: the cost of open channels, in parameters or in bytes, and the choice of those that are opened."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from cwps_jax.core.channels import Layer, Layout, to_columns
from cwps_jax.core.masks import Estimator, gates
from cwps_jax.core.trees import Tree, flatten, unflatten
from cwps_jax.errors import CwpsError

FLOAT32_BYTES = 4
STEP_BYTES = 2  # bytes of a stored row's step size
VECTOR_BYTES, STATISTIC_BYTES = 1, 2  # bytes per number of norms and their statistics, if weights are coded


@dataclasses.dataclass(frozen=True)
class Prices:
    """The costs of a task's channels; hashable, so that they can be a static argument of jit.

    Attributes:
        unit: "parameters" or "bytes".
        fixed: the cost of everything that is stored in any case, without the head.
        channel: for each layer, in the layout's order, the additional cost of an open channel over a closed
            one.
        whole: the cost of the backbone, in float32 if the unit is bytes; ratios are shares of it.
    """

    unit: str
    fixed: int
    channel: tuple[int, ...]
    whole: int

    def most(self, layout: Layout) -> float:
        """Returns the ratio of a task all of whose channels are open."""
        pairs = zip(layout.layers, self.channel, strict=True)
        return (self.fixed + sum(layer.channels * price for layer, price in pairs)) / self.whole


@functools.cache
def parameter_prices(layout: Layout) -> Prices:
    """Returns METHOD's prices: a channel costs its parameters, and each task has norms of its own."""
    return Prices(
        "parameters",
        layout.private_parameters,
        tuple(layer.channel_parameters for layer in layout.layers),
        layout.backbone_parameters,
    )


@functools.cache
def byte_prices(layout: Layout, bits: int, statistics: tuple[int, ...], owner_bytes: int = 1) -> Prices:
    """Returns the prices of shared channels in stored bytes, see `methods.channels` and `store.coded`.

    Args:
        layout: the backbone's layout.
        bits: the bits per weight, `config.row_bits`.
        statistics: the size of each leaf of the model's other collections.
        owner_bytes: the bytes of the number of a closed channel's owner.
    """
    channel = []
    for layer in layout.layers:
        opened = sum(_row_bytes(layer, leaf, bits) for leaf in range(len(layer.leaves)))
        channel.append(max(1, opened - _closed_bytes(layer, owner_bytes)))
    closed = tuple(layer.channels for layer in layout.layers)
    fixed = beside_rows(layout, bits, statistics, closed, owner_bytes)
    return Prices("bytes", fixed, tuple(channel), FLOAT32_BYTES * layout.backbone_parameters)


def beside_rows(
    layout: Layout, bits: int, statistics: tuple[int, ...], closed: tuple[int, ...], owner_bytes: int = 1
) -> int:
    """Returns the bytes that are stored beside open channels: norms, their statistics, masks and owners.

    Args:
        layout, bits, statistics, owner_bytes: see `byte_prices`.
        closed: the number of closed channels of each layer.
    """
    few = bits < 32
    norm = FLOAT32_BYTES if not few else max(VECTOR_BYTES, bits // 8)
    statistic = FLOAT32_BYTES if not few else max(STATISTIC_BYTES, bits // 8)
    beside = norm * layout.private_parameters + statistic * sum(statistics)
    beside += STEP_BYTES * (len(layout.private) + len(statistics)) if few else 0
    for layer, count in zip(layout.layers, closed, strict=True):
        beside += -(-layer.channels // 8) + count * _closed_bytes(layer, owner_bytes)
    return beside


def _closed_bytes(layer: Layer, owner_bytes: int) -> int:
    return owner_bytes + (1 if layer.channels <= 256 else 2)  # the number of its row at the owner


def _row_bytes(layer: Layer, leaf: int, bits: int) -> int:
    numbers = math.prod(layer.shapes[leaf]) // layer.channels
    if bits >= 8:
        return numbers * (bits // 8) + (STEP_BYTES if bits < 32 else 0)
    return bits * -(-numbers // 8) + STEP_BYTES


def _costs(gates: Tree, layout: Layout, prices: Prices) -> dict[str, int]:
    """Returns {path of a gate: the cost that each of its numbers stands for}; all weights cost the same."""
    flat, found = flatten(gates), {}
    for layer, channel in zip(layout.layers, prices.channel, strict=True):
        for leaf, shape in zip(layer.leaves, layer.shapes, strict=True):
            if leaf in flat:
                whole = flat[leaf].size in (1, layer.channels) and not set(layer.leaves[1:]) & flat.keys()
                of_all = layer.leaves[0] == leaf and whole
                found[leaf] = (layer.channels * channel if of_all else math.prod(shape)) // flat[leaf].size
    return found


def params_ratio(gates: Tree, layout: Layout, prices: Prices | None = None) -> jax.Array:
    """Returns the cost of a task without its head, as a share of the backbone's cost, float32 ().

    Args:
        gates: nested dict of gates, soft or hard, in the places of the kernels.
        layout: the backbone's layout.
        prices: the costs of channels; by default their numbers of parameters.
    """
    flat, prices = flatten(gates), prices or parameter_prices(layout)
    kept = jnp.float32(prices.fixed)
    for path, cost in _costs(gates, layout, prices).items():
        kept += jnp.sum(flat[path], dtype=jnp.float32) * cost
    return kept / prices.whole


def check_budget(prices: Prices, budget: float) -> None:
    """Raises CwpsError unless the budget is in (0, 1] and at least as large as the fixed cost."""
    name, what = ("budget", "norms and other private parameters alone cost")
    if prices.unit == "bytes":
        name, what = "byte_budget", "norms, their statistics, masks and owners alone cost"
    if not 0 < budget <= 1:
        raise CwpsError(f"{name} {budget}: must be above 0 and at most 1 (a share of the backbone)")
    least = prices.fixed / prices.whole
    if budget < least:
        raise CwpsError(
            f"{name} {budget}: {what} {least:.4f} of this backbone; take a budget of at least that"
        )


def harden(
    scores: Tree,
    layout: Layout,
    budget: float = 1.0,
    *,
    estimator: Estimator = "annealed",
    prices: Prices | None = None,
) -> dict[str, jax.Array]:
    """Returns hard, boolean gates that keep within a budget.

    Channels whose scores are above the estimator's threshold are opened, the highest score first, until the
    first channel that the budget does not allow. So `params_ratio` never exceeds the budget, and if the
    scores ask for more, less than one channel of it is unused. Equal scores open in the order of the layers.

    Args:
        scores: nested dict of scores.
        layout: the backbone's layout; static under jit.
        budget: the largest params_ratio; 1 means that there is no limit. The same scores can be hardened
            for several budgets.
        estimator: the estimator whose threshold counts.
        prices: the costs of channels; by default their numbers of parameters.

    Raises:
        CwpsError: the budget is not in (0, 1], or is below the fixed cost.
    """
    wanted = gates(scores, estimator=estimator)
    prices = prices or parameter_prices(layout)
    check_budget(prices, budget)
    if budget == 1:
        return wanted
    if prices.whole >= 2**31:
        raise CwpsError(f"a backbone of 2**31 {prices.unit} or more: harden it without a budget")
    # Integers: float32 cannot count the parameters of a large backbone exactly.
    allowance = int(budget * prices.whole + 1e-6) - prices.fixed
    flat_scores, flat_wanted, costs = flatten(scores), flatten(wanted), _costs(scores, layout, prices)
    score = jnp.concatenate([flat_scores[path].ravel() for path in costs])
    wants = jnp.concatenate([flat_wanted[path].ravel() for path in costs])
    cost = jnp.concatenate([jnp.full(flat_scores[path].size, one, jnp.int32) for path, one in costs.items()])
    order = jnp.argsort(jnp.where(wants, -score, jnp.inf), stable=True)
    fits = jnp.cumsum(jnp.where(wants, cost, 0)[order]) <= allowance
    opened = jnp.zeros_like(wants).at[order].set(fits) & wants
    hard, start = {}, 0
    for path in costs:
        shape = flat_scores[path].shape
        hard[path] = opened[start : start + math.prod(shape)].reshape(shape)
        start += math.prod(shape)
    return unflatten(hard)


def moved(child: Tree, parent: Tree, layout: Layout, prices: Prices) -> dict[str, jax.Array]:
    """Returns scores of channels in the places of gates: the squared distance each has moved, over its price.

    Args:
        child: nested dict, the child's parameters.
        parent: nested dict with the layers' leaves, the parameters from which the child moved.
        layout: the backbone's layout.
        prices: the costs of channels.
    """
    ours, theirs, scores = flatten(child), flatten(parent), {}
    for layer, price in zip(layout.layers, prices.channel, strict=True):
        squared = sum(
            jnp.sum(jnp.square(to_columns(ours[leaf] - theirs[leaf], layer.gate_shape)), axis=0)
            for leaf in layer.leaves
        )
        scores[layer.path] = jnp.reshape(squared / price, layer.gate_shape)
    return unflatten(scores)


def steer(
    base: jax.Array, ratio: jax.Array, budget: jax.Array, rate: jax.Array, gain: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns lambda for a step, and its base for the next step; both are in [0, 1] and follow the budget.

    Scores integrate the gradient that lambda gives them, so an integral of the excess alone would oscillate;
    the part in proportion to the excess damps it (PI control).

    Args:
        base: the part of lambda that has built up.
        ratio: the `params_ratio` of the gates as they would be hardened now.
        budget: the ratio to reach.
        rate: change of the base per unit of excess and step.
        gain: lambda per unit of excess.

    Returns:
        (lambda, next base).
    """
    excess = ratio - budget
    return jnp.clip(base + gain * excess, 0.0, 1.0), jnp.clip(base + rate * excess, 0.0, 1.0)
