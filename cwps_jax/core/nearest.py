"""Which stored row is nearest to each channel of a child: distances by matrix products, made exact.

A product of changes since pre-training is right up to a known rounding, of floating point and of the rows to
8 bits. Candidates that this rounding cannot tell apart are compared again, weight by weight.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cwps_jax.core.candidates import (
    Block,
    Form,
    Part,
    Slots,
    blocks,
    channel_rows,
    direction,
    slot_rows,
    slots_of,
)
from cwps_jax.core.channels import Layer, Layout, Shape, to_columns
from cwps_jax.core.stored import StoredModels

EXACT_BYTES = 1 << 20  # rows that are compared weight by weight at a time
PIECE_BYTES = 4 << 20  # rows that are float32 at a time, on a CPU: what its caches hold
NOWHERE = np.iinfo(np.int32).max  # the place of a filling row

Found = Iterator[tuple[Layer, np.ndarray, np.ndarray]]  # a layer, its channels' models and channels there


def aligned(
    layout: Layout,
    child: Mapping[str, Any],
    models: StoredModels,
    distance: str,
    z: float,
    by_layer: bool,
) -> Found:
    """Yields for every channel the model whose channel of the same index is nearest, layer by layer.

    A layer is decided as soon as all of its rows are compared, while the devices are at the next ones.

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

    # Sums over a layer differ by less than rounding to 8 bits leaves open.
    rounded = not by_layer
    channels = lambda path, slots, part: part.channel
    for path, slots, part, products in _on_devices(
        layout, models, form, rounded, changes, channels, _products
    ):
        compared[path].fill(slots, part, np.concatenate([one.ravel() for one in products]))
        if compared[path].filled:
            yield compared.pop(path).nearest(models, form, np.asarray(changes[path]))
    for path, one in compared.items():
        yield one.nearest(models, form, np.asarray(changes[path]))


class _Compared:
    """The slots of one layer, compared with the child's channels.

    A candidate is a slot, for a channel; by layer, it is a model with all of its slots.
    """

    def __init__(self, slots: Slots, distance: str, z: float, by_layer: bool) -> None:
        self.slots, self.distance, self.z, self.by_layer = slots, distance, z, by_layer
        self.product, self.squared, self.error, self.exact = np.zeros((4, len(slots.channel)))
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
        self.product[slots] = products[part.place] * part.scale
        self.squared[slots] = part.squared
        self.error[slots] = part.error
        self.missing -= len(slots)

    def nearest(
        self, models: StoredModels, form: Form, own: np.ndarray
    ) -> tuple[Layer, np.ndarray, np.ndarray]:
        """Returns the layer, its channels' models, and their channels there; ties go to the oldest.

        Args:
            models: the pool's models.
            form: of the rows that were compared.
            own: float32 (channels, size), the child's channels in this form.
        """
        near, unclear = self._bounded(own)
        self._fill_exactly(np.flatnonzero(unclear), models, form, own)
        cost = self._sum(self.exact)
        if self.distance == "change":
            cost = self._disagreement(cost)
        cost = np.where(near, cost, np.inf)
        lowest = np.flatnonzero(cost == np.minimum.reduceat(cost, self.first)[self.group])
        oldest = lowest[np.searchsorted(self.group[lowest], np.arange(len(self.first)))]
        layer = self.slots.layer
        return layer, np.broadcast_to(self.model[oldest], layer.channels), np.arange(layer.channels)

    def _bounded(self, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns which candidates can be nearest, and which slots that leaves open, both bool."""
        layer = self.slots.layer
        length = np.einsum("cs,cs->c", own, own)[self.slots.channel].astype(np.float64)
        rounding = layer.channel_parameters * float(np.finfo(np.float32).eps)
        product, squared = self._sum(self.product), self._sum(self.squared)
        # By Cauchy and Schwarz, of what was summed and of what was left out.
        slack = self._sum(np.sqrt(length) * (3 * rounding * np.sqrt(self.squared) + self.error))
        if self.distance == "change":
            norm = np.sqrt(self._sum(length) * squared)
            parameters = layer.parameters if self.by_layer else layer.channel_parameters
            self.scale = math.sqrt(parameters) / np.where(norm > 0, norm, np.inf)
            low, high = self._disagreement(product + slack), self._disagreement(product - slack)
        else:
            cost, slack = squared - 2 * product, 2 * slack + rounding * squared
            low, high = cost - slack, cost + slack
        near = low <= np.minimum.reduceat(high, self.first)[self.group]
        unclear = near & (np.add.reduceat(near, self.first, dtype=int) > 1)[self.group]
        if not self.by_layer:
            return near, unclear
        slots = np.zeros(len(self.product), bool)
        slots[self.slots.index[:, self.model[unclear]]] = True
        return near, slots

    def _fill_exactly(self, slots: np.ndarray, models: StoredModels, form: Form, own: np.ndarray) -> None:
        """Compares slots weight by weight, as they are stored."""
        slots = slots[np.argsort(self.slots.owner[slots], kind="stable")]
        step = max(1, EXACT_BYTES // (4 * self.slots.layer.channel_parameters))
        for first in range(0, len(slots), step):
            some = slots[first : first + step]
            ours, theirs = own[self.slots.channel[some]], slot_rows(self.slots, models, some, form)
            if self.distance != "change":
                ours = theirs = ours - theirs
            # In float64 without a cast inside the sum: equal rows cost the same to the bit.
            self.exact[some] = np.multiply(ours, theirs, dtype=np.float64).sum(axis=1)

    def _disagreement(self, product: np.ndarray) -> np.ndarray:
        """Returns the cost of "change": minus an agreement above z, else 0 for what never moved, else 1."""
        agreement = product * self.scale
        return np.where(agreement > self.z, -agreement, self._sum(self.squared) > 0)

    def _sum(self, values: np.ndarray) -> np.ndarray:
        """Returns the candidates' values: the slots', or by layer the sums over each model's slots."""
        return values[self.slots.index[:, self.model]].sum(axis=0) if self.by_layer else values


def of_any(layout: Layout, child: Mapping[str, Any], models: StoredModels, distance: str, z: float) -> Found:
    """Yields for every channel the nearest channel of the same layer, whichever its index, layer by layer.

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
    for path, _, _, found in _on_devices(layout, models, "rows", False, own, places, nearest):
        for lowest, place in found:
            nearer = (lowest < cost[path]) | ((lowest == cost[path]) & (place < best[path]))
            cost[path], best[path] = np.where(nearer, lowest, cost[path]), np.where(nearer, place, best[path])
    for path, place in best.items():
        layer = every[path].layer
        yield layer, *np.divmod(place, layer.channels)


def _on_devices(
    layout: Layout,
    models: StoredModels,
    form: Form,
    rounded: bool,
    own: Mapping[str, Any],
    beside: Callable[[str, np.ndarray, Part], Iterable[np.ndarray]],
    compare: Callable[[Any, np.ndarray, np.ndarray], Any],
) -> Iterator[tuple[str, np.ndarray, Part, list[Any]]]:
    """Yields every part of the pool, as `blocks` does, and what `compare` gave for its chunks.

    Args:
        layout: the backbone's layout.
        models: the pool's models.
        form: as in `blocks`.
        rounded: as in `blocks`.
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
    for block in itertools.chain(blocks(layout, models, form, rounded), [[]]):
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
    if rows.dtype == jnp.float32:
        return _products_of_all(own, rows, channel)
    return jax.lax.platform_dependent(own, rows, channel, cpu=_products_by_pieces, default=_products_of_all)


def _products_of_all(own: jax.Array, rows: jax.Array, channel: jax.Array) -> jax.Array:
    return _product(rows, own[channel])


def _products_by_pieces(own: jax.Array, rows: jax.Array, channel: jax.Array) -> jax.Array:
    """A CPU writes the rows as float32 before it multiplies: here into its caches, not into new memory."""
    groups, width, size = rows.shape
    fit = max(2, PIECE_BYTES // (4 * width * size))  # two at least, for its cores
    some = min(1 << (fit.bit_length() - 1), groups)  # groups are a power of two
    pieces = rows.reshape(-1, some, width, size), channel.reshape(-1, some)
    found = jax.lax.map(lambda piece: _product(piece[0], own[piece[1]]), pieces)
    return found.reshape(groups, width)


def _product(rows: jax.Array, own: jax.Array) -> jax.Array:
    rows = rows.astype(jnp.float32)
    return jnp.einsum("gws,gs->gw", rows, own, precision=jax.lax.Precision.HIGHEST)


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
