"""Which stored row is nearest to each channel of a child: distances by matrix products, made exact.

A product of changes since pre-training is right up to a known rounding. Candidates that this rounding
cannot tell apart are compared again, weight by weight.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cwps_jax.core.candidates import Block, Form, Part, Slots, blocks, channel_rows, direction, slots_of
from cwps_jax.core.channels import Layout, Shape, to_columns
from cwps_jax.core.stored import StoredModels

EXACT_ROWS = 256  # that are compared weight by weight at a time
NOWHERE = np.iinfo(np.int32).max  # the place of a filling row

Found = dict[str, tuple[np.ndarray, np.ndarray]]  # {path of a kernel: (model, channel)}


def aligned(
    layout: Layout,
    child: Mapping[str, Any],
    models: StoredModels,
    distance: str,
    z: float,
    by_layer: bool,
) -> Found:
    """Returns for every channel the model whose channel of the same index is nearest.

    Args:
        layout: the backbone's layout.
        child: flat dict of the layers' leaves.
        models: the pool's models.
        distance: as in `Search`.
        z: as in `Search`.
        by_layer: one model a layer.
    """
    form: Form = "directions" if distance == "cosine" else "changes"
    changes, every = _own(layout, form, child, models.read(0)), slots_of(layout, models)
    compared = {path: _Compared(slots, distance, z, by_layer) for path, slots in every.items()}
    opened: dict[str, np.ndarray] = {}
    channels = lambda path, slots, part: part.channel
    for path, slots, part, products in _on_devices(layout, models, form, changes, channels, _products):
        compared[path].fill(slots, part, np.concatenate([one.ravel() for one in products]))
        if compared[path].filled:  # decided now, while the devices are at the next layers
            opened[path] = compared[path].opened(np.asarray(changes[path]))
    own = jax.device_get(changes)
    opened |= {path: compared[path].opened(own[path]) for path in every if path not in opened}
    if any(each.any() for each in opened.values()):
        for path, one in compared.items():
            wanted = np.flatnonzero(opened[path] & every[path].unchanged)
            one.fill_exactly(wanted, np.zeros((1, own[path].shape[1])), np.zeros_like(wanted), own[path])
        for block in blocks(layout, models, form):
            for path, slots, part in block:
                wanted = opened[path][slots]
                compared[path].fill_exactly(slots[wanted], part.rows, part.place[wanted], own[path])
    return {path: (compared[path].nearest(), np.arange(one.layer.channels)) for path, one in every.items()}


class _Compared:
    """The slots of one layer, compared with the child's channels.

    A candidate is a slot, for a channel; by layer, it is a model with all of its slots.
    """

    def __init__(self, slots: Slots, distance: str, z: float, by_layer: bool) -> None:
        self.slots, self.distance, self.z, self.by_layer = slots, distance, z, by_layer
        self.product, self.squared, self.exact = np.zeros((3, len(slots.channel)))
        self.model, self.group = slots.model, slots.channel
        if by_layer:
            # Of models that have the very same slots the oldest is the candidate.
            self.model = np.sort(np.unique(slots.index, axis=1, return_index=True)[1])
            self.group = np.zeros_like(self.model)
        self.first = np.flatnonzero(self.model == 0)
        self.missing = np.count_nonzero(~slots.unchanged)

    @property
    def filled(self) -> bool:
        """Whether every row that has changed has been compared."""
        return self.missing == 0

    def fill(self, slots: np.ndarray, part: Part, products: np.ndarray) -> None:
        """Notes the products of a part's rows and the child's changes."""
        self.product[slots] = products[part.place]
        self.squared[slots] = part.squared
        self.missing -= len(slots)

    def opened(self, own: np.ndarray) -> np.ndarray:
        """Returns bool (slots,), those that only a comparison weight by weight can tell apart."""
        layer = self.slots.layer
        self.length = np.einsum("cs,cs->c", own, own)[self.slots.channel].astype(np.float64)
        rounding = layer.channel_parameters * float(np.finfo(np.float32).eps)
        product, squared = self._sum(self.product), self._sum(self.squared)
        slack = 2 * rounding * self._sum(np.sqrt(self.length * self.squared))
        if self.distance == "change":
            norm = np.sqrt(self._sum(self.length) * squared)
            parameters = layer.parameters if self.by_layer else layer.channel_parameters
            self.scale = math.sqrt(parameters) / np.where(norm > 0, norm, np.inf)
            low, high = self._disagreement(product + slack), self._disagreement(product - slack)
        else:
            cost, slack = squared - 2 * product, slack + rounding * squared
            low, high = cost - slack, cost + slack
        self.near = low <= np.minimum.reduceat(high, self.first)[self.group]
        unclear = self.near & (np.add.reduceat(self.near, self.first, dtype=int) > 1)[self.group]
        if not self.by_layer:
            return unclear
        found = np.zeros(len(self.product), bool)
        found[self.slots.index[:, self.model[unclear]]] = True
        return found

    def fill_exactly(self, slots: np.ndarray, rows: np.ndarray, place: np.ndarray, own: np.ndarray) -> None:
        """Compares slots weight by weight; their rows stand at these places."""
        for first in range(0, len(slots), EXACT_ROWS):
            some = slice(first, first + EXACT_ROWS)
            ours, theirs = own[self.slots.channel[slots[some]]], rows[place[some]]
            if self.distance != "change":
                ours = theirs = ours - theirs
            # In float64 without a cast inside the sum: equal rows cost the same to the bit.
            self.exact[slots[some]] = np.multiply(ours, theirs, dtype=np.float64).sum(axis=1)

    def nearest(self) -> np.ndarray:
        """Returns each channel's model, int (channels,): ties go to the oldest."""
        cost = self._sum(self.exact)
        if self.distance == "change":
            cost = self._disagreement(cost)
        cost = np.where(self.near, cost, np.inf)
        lowest = np.flatnonzero(cost == np.minimum.reduceat(cost, self.first)[self.group])
        oldest = lowest[np.searchsorted(self.group[lowest], np.arange(len(self.first)))]
        return np.broadcast_to(self.model[oldest], self.slots.layer.channels)

    def _disagreement(self, product: np.ndarray) -> np.ndarray:
        """Returns the cost of "change": minus an agreement above z, else 0 for what never moved, else 1."""
        agreement = product * self.scale
        return np.where(agreement > self.z, -agreement, self._sum(self.squared) > 0)

    def _sum(self, values: np.ndarray) -> np.ndarray:
        """Returns the candidates' values: the slots', or by layer the sums over each model's slots."""
        return values[self.slots.index[:, self.model]].sum(axis=0) if self.by_layer else values


def of_any(layout: Layout, child: Mapping[str, Any], models: StoredModels, distance: str, z: float) -> Found:
    """Returns for every channel the nearest channel of the same layer, whichever its index: (model, channel).

    Args:
        layout: the backbone's layout.
        child: flat dict of the layers' leaves.
        models: the pool's models.
        distance: as in `Search`.
        z: as in `Search`.
    """
    every, start = slots_of(layout, models), models.read(0)
    rows = _own(layout, "rows", child, start)
    own = {
        path: (rows[path], channel_rows(one.layer, start, slice(None), "rows")) for path, one in every.items()
    }
    cost = {path: np.full(one.layer.channels, np.inf, np.float32) for path, one in every.items()}
    best = {path: np.zeros(one.layer.channels, np.int32) for path, one in every.items()}

    def places(path: str, slots: np.ndarray, part: Part) -> list[np.ndarray]:
        # Ties go to the oldest model, then to the lowest channel.
        one, place = every[path], np.full(len(part.rows), NOWHERE, np.int32)
        place[part.place] = (one.model * one.layer.channels + one.channel)[slots]
        return part.split(place)

    nearest = functools.partial(_nearest, distance=distance, z=z)
    for path, _, _, found in _on_devices(layout, models, "rows", own, places, nearest):
        for lowest, place in found:
            nearer = (lowest < cost[path]) | ((lowest == cost[path]) & (place < best[path]))
            cost[path], best[path] = np.where(nearer, lowest, cost[path]), np.where(nearer, place, best[path])
    return {path: np.divmod(place, every[path].layer.channels) for path, place in best.items()}


def _on_devices(
    layout: Layout,
    models: StoredModels,
    form: Form,
    own: Mapping[str, Any],
    beside: Callable[[str, np.ndarray, Part], Iterable[np.ndarray]],
    compare: Callable[[Any, np.ndarray, np.ndarray], Any],
) -> Iterator[tuple[str, np.ndarray, Part, list[Any]]]:
    """Yields every part of the pool, as `blocks` does, and what `compare` gave for its chunks.

    Args:
        layout: the backbone's layout.
        models: the pool's models.
        form: as in `blocks`.
        own: {path: what every chunk of this layer is compared with}.
        beside: (path, slots, part) to what else `compare` takes, chunk by chunk.
        compare: (a layer's own, a chunk's rows, what is beside them) to arrays, on the device where that
            own is: all devices in turn.
    """
    devices = jax.local_devices()
    placed = functools.cache(lambda path, device: jax.device_put(own[path], device))

    def begin(block: Block) -> Iterator[tuple[str, np.ndarray, Part, list[Any]]]:
        for layer, (path, slots, part) in enumerate(block):
            begun = []
            for chunk, each in enumerate(zip(part.split(part.rows), beside(path, slots, part), strict=True)):
                # By its number, so that a pool that grows compiles no program for another device.
                device = devices[(layer + chunk) % len(devices)]
                # NumPy follows to that device by itself; a call of device_put is longer than many products.
                begun.append(compare(placed(path, device), *each))
            yield path, slots, part, begun

    earlier: list[tuple[str, np.ndarray, Part, list[Any]]] = []
    for block in itertools.chain(blocks(layout, models, form), [[]]):
        # The devices have work while a block's results are fetched, and while the next one is read.
        begun = list(begin(block))
        for path, slots, part, found in earlier:
            yield path, slots, part, jax.device_get(found)
        earlier = begun


def _own(
    layout: Layout, form: Form, child: Mapping[str, Any], start: Mapping[str, np.ndarray]
) -> dict[str, jax.Array]:
    """Returns the child's channels of every layer in a form, (channels, size)."""
    own = {}
    for layer in layout.layers:
        leaves, before = ([tree[leaf] for leaf in layer.leaves] for tree in (child, start))
        own[layer.path] = _own_layer(leaves, before, layer.gate_shape, form)
    return own


@functools.partial(jax.jit, static_argnums=(2, 3))
def _own_layer(leaves: list[jax.Array], start: list[jax.Array], gate_shape: Shape, form: Form) -> jax.Array:
    # By columns: to turn a matrix is faster than to move one axis of four.
    turned = [to_columns(leaf, gate_shape).T for leaf in leaves]
    rows, before = (jnp.concatenate(each, axis=1, dtype=jnp.float32) for each in (turned, start))
    if form == "directions":
        rows, before = direction(rows), direction(before)
    return rows if form == "rows" else rows - before


@jax.jit
def _products(own: jax.Array, rows: jax.Array, channel: jax.Array) -> jax.Array:
    """Returns the inner products of a chunk's rows and their channels, (groups, width)."""
    return jnp.einsum("gws,gs->gw", rows, own[channel], precision=jax.lax.Precision.HIGHEST)


@functools.partial(jax.jit, static_argnames=("distance", "z"))
def _nearest(
    own: tuple[jax.Array, jax.Array], rows: jax.Array, place: jax.Array, distance: str, z: float
) -> tuple[jax.Array, jax.Array]:
    """Returns the lowest cost of each channel among a chunk's rows, and the first place that has it."""
    rows, place = rows.reshape(-1, rows.shape[-1]), place.ravel()

    def nearest(channel):
        costs = jnp.where(place < NOWHERE, _distances(channel[0], rows, channel[1], distance, z), jnp.inf)
        lowest = jnp.min(costs)
        return lowest, jnp.min(jnp.where(costs == lowest, place, NOWHERE))

    # One channel of the child at a time: exact differences without a (channels, rows, size) array.
    return jax.lax.map(nearest, own)


def _distances(child: jax.Array, rows: jax.Array, start: jax.Array, distance: str, z: float) -> jax.Array:
    """Returns the distance of a channel to every row, weight by weight."""
    if distance == "l2":
        return jnp.sum((child - rows) ** 2, axis=-1)
    if distance == "cosine":
        # One minus the cosine, as half the squared distance of the directions: 1 - x cancels near 1.
        return 0.5 * jnp.sum((direction(child) - direction(rows)) ** 2, axis=-1)
    change = rows - start
    cosine = jnp.sum(direction(child - start) * direction(change), axis=-1)
    agreement = cosine * math.sqrt(child.shape[-1])
    # A row that never changed is the pre-trained one: it costs 0, and others have to beat it by z.
    unmoved = jnp.all(change == 0, axis=-1)
    return jnp.where(agreement > z, -agreement, jnp.where(unmoved, 0.0, 1.0))
