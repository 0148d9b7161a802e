"""The search over any channel: the nearest stored row of a layer for each of a child's channels.

All rows are compared with all channels by matrix products in float64, and weight by weight where the rounding
of these does not decide.
"""

import functools

import numpy as np

from cwps_jax.search.child import Child, Found, formed
from cwps_jax.search.models import StoredModels
from cwps_jax.search.nearest import by_path, decided
from cwps_jax.search.slots import runs

EPS, EPS64 = (float(np.finfo(dtype).eps) for dtype in (np.float32, np.float64))


def of_any(child: Child, models: StoredModels) -> Found:
    """Returns for every channel the nearest channel of the same layer, of any index."""
    slots = models.mine
    read = functools.cache(models.read)
    near = [np.empty((4, 0), int)], [np.empty((2, 0))]
    for number, layer in enumerate(child.layers):
        network = np.flatnonzero(child.layer == number)
        mine = np.flatnonzero(child.layer[slots.channel] == number)
        if not len(mine):
            continue
        place = slots.model[mine] * layer.channels + child.channel[slots.channel[mine]]
        # Each stored row once, at the oldest model's lowest channel that has it.
        key = slots.owner[mine] * (slots.row[mine].max() + 1) + slots.row[mine]
        order = np.lexsort((place, key))
        order = order[np.flatnonzero(np.diff(key[order], prepend=-1))]
        owner, row, place = slots.owner[mine][order], slots.row[mine][order], place[order]
        best = np.full(layer.channels, np.inf)
        for block in (np.arange(*each) for each in runs(owner)):
            stored = {leaf: read(int(owner[block[0]]))[leaf][row[block]] for leaf in layer.leaves}
            unmoved = (owner[block] == 0) & (row[block] == np.arange(layer.channels)[:, None])
            low, high = _bounds(child, number, formed(layer, stored, child.distance), unmoved)
            best = np.minimum(best, high.min(axis=1))
            channel, which = np.nonzero(low <= best[:, None])
            left = block[which]
            near[0].append(np.stack([network[channel], place[left], owner[left], row[left]]))
            near[1].append(np.stack([low[channel, which], high[channel, which]]))
    places = decided(child, models, *np.concatenate(near[0], axis=1), *np.concatenate(near[1], axis=1))
    channels = np.array([layer.channels for layer in child.layers])
    model, channel = np.divmod(places, channels[child.layer])
    return by_path(child, model, channel)


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
