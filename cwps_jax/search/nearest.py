"""The nearest stored row of each channel, by sketches where they decide, otherwise weight by weight."""

import numpy as np

from cwps_jax.search import shares
from cwps_jax.search.child import Child, Found
from cwps_jax.search.models import StoredModels, joined

EPS = float(np.finfo(np.float32).eps)


def of_same(child: Child, models: StoredModels) -> Found:
    """Returns for every channel the model whose channel of the same index is nearest."""
    slots = models.mine
    places = decided(
        child, models, slots.channel, slots.model, slots.owner, slots.row, *_bounds(child, models)
    )
    return by_path(child, places, child.channel)


def decided(
    child: Child,
    models: StoredModels,
    channel: np.ndarray,
    place: np.ndarray,
    owner: np.ndarray,
    row: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> np.ndarray:
    """Returns the place of each channel's nearest row, the lowest of equally near ones, (all channels,).

    Args:
        child: the child.
        models: the pool's models.
        channel: int (rows,), whose candidate each row is that this process has looked at.
        place: int (rows,), in which order equally near ones are taken.
        owner, row: int (rows,), where they are stored.
        low, high: float64 (rows,), the least and the most that they can cost.
    """
    left = _left([channel, place, owner, row, low, high])  # by this process's own rows; then by those of all
    channel, place, owner, row, low, high = _left(shares.joined(*left))
    first = np.flatnonzero(np.diff(channel, prepend=-1))
    several = np.diff(first, append=len(channel)) > 1
    unclear = np.flatnonzero(several[channel])
    where = channel[unclear]
    value, squared = child.weighed(models, where, owner[unclear], row[unclear])
    if child.distance == "change":
        value = child.disagreement(value, squared, child.length[where], child.fan[where])
    cost = np.zeros(len(channel))
    cost[unclear] = value
    nearest = cost == np.minimum.reduceat(cost, first)[channel]
    return np.minimum.reduceat(np.where(nearest, place, place.max()), first)


def _left(found: list[np.ndarray]) -> list[np.ndarray]:
    """Returns the rows that can be the nearest to their channel, by channel; each as in `decided`."""
    channel, low, high = found[0], found[4], found[5]
    order = np.argsort(channel, kind="stable")
    first = np.flatnonzero(np.diff(channel[order], prepend=-1))
    best = np.repeat(np.minimum.reduceat(high[order], first), np.diff(first, append=len(order)))
    near = order[low[order] <= best]
    return [each[near] for each in found]


def _bounds(child: Child, models: StoredModels) -> tuple[np.ndarray, np.ndarray]:
    """Returns bounds of the distance of this process's slots, lower and upper, float64 (slots,)."""
    slots = models.mine
    unmoved = (slots.owner == 0) & (slots.row == child.channel[slots.channel])  # all of it is zero
    known = unmoved.copy()
    product, squared, error, norm = np.zeros((4, len(slots.channel)))
    if (sketched := models.sketched) is not None:
        at, about = sketched.slots, sketched.about
        known[at] = True
        product[at] = sketched.products(child.own)
        error[at], norm[at] = about["error"], about["norm"]
        squared[at] = about["turned" if child.distance == "cosine" else "squared"]
    if child.distance == "cosine":
        product, error = _turned(child, models, product, error, norm)
        product[unmoved] = 0
    length, fan = child.length[slots.channel], child.fan[slots.channel]
    rounding = fan * EPS
    # By Cauchy and Schwarz, of what was summed and of what was left out.
    slack = np.sqrt(length) * (3 * rounding * np.sqrt(squared) + error)
    if child.distance == "change":
        low, high = (child.disagreement(product + shift, squared, length, fan) for shift in (slack, -slack))
    else:
        cost, slack = squared - 2 * product, 2 * slack + rounding * squared
        low, high = cost - slack, cost + slack
    # What has no sketch is compared weight by weight.
    return np.where(known, low, -np.inf), np.where(known, high, np.inf)


def _turned(
    child: Child, models: StoredModels, product: np.ndarray, error: np.ndarray, norm: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns products, and errors, of changes of direction, given those of the changes themselves.

    With n and m the norms of a row and its start: row / n - start / m = change / n + (m / n - 1) start / m.
    """
    pairs = zip(child.own, child.start, strict=True)
    lean = [np.einsum("cs,cs->c", own, start, dtype=np.float64) for own, start in pairs]
    rows = [joined(layer, models.read(0)) for layer in child.layers]
    length = [np.sqrt(np.einsum("cs,cs->c", each, each, dtype=np.float64)) for each in rows]
    lean, length = (np.concatenate(each)[models.mine.channel] for each in (lean, length))
    scale = 1 / np.where(norm > 0, norm, np.inf)
    # What float32 takes from directions is far from the norms' own rounding, which grows with the fan-in.
    return product * scale + np.where(norm > 0, length * scale - 1, -1) * lean, error * scale + 32 * EPS


def of_layers(child: Child, models: StoredModels, as_one: bool = False) -> Found:
    """Returns for every layer the model that is nearest as a whole; with `as_one` the same for all layers.

    Sums over a layer differ by less than the error of 8 bits, so all of it is compared weight by weight.
    """
    slots = models.slots
    cost, squared = child.weighed(models, slots.channel, slots.owner, slots.row)
    sums = []  # of each layer: the models' costs, their squared norms, the child's own, and its weights
    for number, layer in enumerate(child.layers):
        mine = np.flatnonzero(child.layer[slots.channel] == number)
        owner, row = (each[layer.path].T.astype(np.int64) for each in (models.owner, models.row))
        rows, owners = row.max() + 1, owner.max() + 1
        key = (child.channel[slots.channel[mine]] * owners + slots.owner[mine]) * rows + slots.row[mine]
        wanted = (np.arange(layer.channels)[:, None] * owners + owner) * rows + row
        index = mine[np.searchsorted(key, np.ascontiguousarray(wanted))]
        length = child.length[child.layer == number].sum()
        sums.append((cost[index].sum(axis=0), squared[index].sum(axis=0), length, layer.parameters))
    found = {}
    for number, layer in enumerate(child.layers):
        parts = sums if as_one else [sums[number]]
        value, norms, length, parameters = (np.sum(each, axis=0) for each in zip(*parts, strict=True))
        if child.distance == "change":
            value = child.disagreement(value, norms, length, parameters)
        found[layer.path] = np.full(layer.channels, np.argmin(value)), np.arange(layer.channels)
    return found


def by_path(child: Child, model: np.ndarray, channel: np.ndarray) -> Found:
    """Returns what was found for all channels, layer by layer."""
    first = np.cumsum([layer.channels for layer in child.layers])[:-1]
    pairs = zip(np.split(model, first), np.split(channel, first), strict=True)
    return {layer.path: pair for layer, pair in zip(child.layers, pairs, strict=True)}
