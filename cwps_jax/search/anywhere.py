"""The search over any channel: the nearest stored row of a layer for each of a child's channels.

All rows are compared with all channels by matrix products in float64, and weight by weight where the rounding
of these does not decide.
"""

import functools

import numpy as np

from cwps_jax.search.child import Child, Found, formed
from cwps_jax.search.models import StoredModels

EPS, EPS64 = (float(np.finfo(dtype).eps) for dtype in (np.float32, np.float64))


def of_any(child: Child, models: StoredModels) -> Found:
    """Returns for every channel the nearest channel of the same layer, of any index."""
    slots, found = models.slots, {}
    read = functools.cache(models.read)
    for number, layer in enumerate(child.layers):
        mine = np.flatnonzero(child.layer[slots.channel] == number)
        place = slots.model[mine] * layer.channels + child.channel[slots.channel[mine]]
        # Each stored row once, at the oldest model's lowest channel that has it.
        key = slots.owner[mine] * (slots.row[mine].max() + 1) + slots.row[mine]
        order = np.lexsort((place, key))
        order = order[np.flatnonzero(np.diff(key[order], prepend=-1))]
        owner, row, place = slots.owner[mine][order], slots.row[mine][order], place[order]
        best = np.full(layer.channels, np.inf)
        pairs = []
        for block in np.split(np.arange(len(owner)), np.flatnonzero(np.diff(owner)) + 1):
            stored = {leaf: read(int(owner[block[0]]))[leaf][row[block]] for leaf in layer.leaves}
            unmoved = (owner[block] == 0) & (row[block] == np.arange(layer.channels)[:, None])
            low, high = _bounds(child, number, formed(layer, stored, child.distance), unmoved)
            best = np.minimum(best, high.min(axis=1))
            channel, which = np.nonzero(low <= best[:, None])
            pairs.append((channel, block[which], low[channel, which]))
        channel, which, lowest = (np.concatenate(each) for each in zip(*pairs, strict=True))
        near = np.flatnonzero(lowest <= best[channel])
        near = near[np.lexsort((place[which[near]], channel[near]))]
        channel, which = channel[near], which[near]
        network = channel + np.flatnonzero(child.layer == number)[0]
        cost, squared = child.weighed(models, network, owner[which], row[which])
        if child.distance == "change":
            cost = child.disagreement(cost, squared, child.length[network], layer.channel_parameters)
        lowest = np.minimum.reduceat(cost, np.flatnonzero(np.diff(channel, prepend=-1)))
        first = np.flatnonzero(cost == lowest[channel])
        first = first[np.searchsorted(channel[first], np.arange(layer.channels))]
        model, other = np.divmod(place[which[first]], layer.channels)
        found[layer.path] = model, other
    return found


def _bounds(
    child: Child, number: int, rows: np.ndarray, unmoved: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns bounds of each row's distance to each channel, lower and upper, float64 (channels, rows).

    Args:
        child: the child.
        number: of one of its layers.
        rows: stored rows, as its distance compares them.
        unmoved: bool (channels, rows), whether a row is the channel's own start.
    """
    x, own, start = (each.astype(np.float64) for each in (rows, child.own[number], child.start[number]))
    length, begin, norm = (np.einsum("rs,rs->r", each, each) for each in (own, start, x))
    product = own @ x.T - np.einsum("cs,cs->c", own, start)[:, None]
    squared = norm - 2 * (start @ x.T) + begin[:, None]
    size, far = own.shape[1], np.sqrt(norm) + np.sqrt(begin)[:, None]
    squared_off = 4 * size * EPS64 * far**2
    squared = np.where(unmoved, 0, np.maximum(squared, 0))
    length = length[:, None]
    norm = np.sqrt(length * squared)
    off = 4 * EPS * norm + 4 * size * EPS64 * np.sqrt(length) * far
    if child.distance != "change":
        cost = length + squared - 2 * product
        # Of differences in float32, and of the sums here.
        slack = 4 * EPS * (np.sqrt(length) + np.sqrt(squared)) ** 2 + 2 * off + squared_off
        return cost - slack, cost + slack
    # The rounding of norms in float32, which grows with their number of weights.
    scale = np.sqrt(size) / np.where(norm > 0, norm, np.inf)
    agreement = product * scale
    clear = squared > 4 * squared_off
    slack = off * scale + np.abs(agreement) * (size * EPS + squared_off / np.where(clear, squared, np.inf))
    low, high = (np.where(each > child.z, -each, 1.0) for each in (agreement + slack, agreement - slack))
    low, high = np.where(clear, low, -np.inf), np.where(clear, high, np.inf)
    return np.where(unmoved, 0, low), np.where(unmoved, 0, high)
