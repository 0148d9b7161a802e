"""Which stored row is nearest to each channel of a child: distances by matrix products, made exact.

A product of changes since pre-training is right up to a known rounding. Candidates that this rounding
cannot tell apart are compared again, weight by weight.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cwps_jax.core.candidates import Chunk, Form, Part, Slots, Starts, blocks, starts, tables_of, whole
from cwps_jax.core.channels import Layout
from cwps_jax.core.stored import StoredModels, model_rows

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
    tables = tables_of(layout, models, form)
    own = whole(tables, model_rows(layout, child), form)
    changes, lengths = _changes(own, starts(tables, models, form))
    compared = {
        name: _Compared(table, lengths[name], distance, z, by_layer) for name, table in tables.items()
    }
    for block in blocks(tables, models, form):
        found = products(block, changes)
        for name, part in block.items():
            compared[name].fill(part, found[name])
    best = {name: one.nearest() for name, one in compared.items()}
    unclear = [name for name, one in compared.items() if len(one.open)]
    if unclear:
        for block in blocks(tables, models, form):
            for name in block.keys() & unclear:
                compared[name].fill_exactly(block[name], changes[name])
        best |= {name: compared[name].nearest_exactly() for name in unclear}
    return {
        layer.path: (best[name][first : first + layer.channels], np.arange(layer.channels))
        for name, table in tables.items()
        for layer, first in zip(table.layers, table.first, strict=True)
    }


def products(block: Mapping[str, Part], changes: Starts) -> dict[str, list[jax.Array]]:
    """Returns the inner products of every row of a block with the child's channel.

    Args:
        block: one of `blocks`.
        changes: the child's changes, {table: float32 (channels, size)}.

    Returns:
        {table: float32 (groups, width) for each of its chunks}.
    """
    return {name: [_products(chunk, changes[name]) for chunk in part.chunks] for name, part in block.items()}


class _Compared:
    """The slots of one table, compared with the child's channels.

    Attributes:
        open: the slots that only a comparison weight by weight can tell apart, in order.
    """

    def __init__(self, table: Slots, length: jax.Array, distance: str, z: float, by_layer: bool) -> None:
        count = len(table.channel)
        self.table, self.distance, self.z, self.by_layer = table, distance, z, by_layer
        self.length = np.asarray(length)  # of the child's changes, squared
        self.product, self.squared, self.exact = (np.zeros(count, np.float32) for _ in range(3))
        self.moved = np.zeros(count, bool)
        self.open = np.zeros(0, np.int64)

    def fill(self, part: Part, products: Sequence[jax.Array]) -> None:
        """Notes the products of a part's rows and the child's changes."""
        found = np.concatenate([np.asarray(product).ravel() for product in products])
        self.product[part.slots] = found[part.place]
        self.squared[part.slots] = part.squared
        self.moved[part.slots] = part.moved

    def nearest(self) -> np.ndarray:
        """Returns each channel's model, int (channels,), and finds out which slots are open."""
        index = self.table.index
        rounding = self.table.size * float(np.finfo(np.float32).eps)
        length = self.length[self.table.channel]
        slack = rounding * np.sqrt(length.astype(np.float64) * self.squared)
        # A channel's cost is a slot's; a layer's is that of all its channels together.
        values = [self.product, self.squared, slack, self.moved]
        if self.by_layer:
            values, length = [self._sum(one[index]) for one in values], self._sum(self.length[None])
        product, squared, slack, moved = values
        if self.distance == "change":
            low, high = (
                self._disagreement(product + side * slack, squared, length, moved) for side in (2, -2)
            )
        else:
            cost, slack = squared - 2 * product, 2 * slack + rounding * squared
            low, high = cost - slack, cost + slack
        if not self.by_layer:
            low, high = low[index], high[index]
        self.best = np.argmin(high, axis=0)
        self.near = low <= high.min(axis=0)
        chosen = index[self._spread(self.best), np.arange(index.shape[1])]
        self.unclear = np.any(self.near & (self._sum(index != chosen) > 0), axis=0)
        self.open = np.unique(index[self._spread(self.near & self.unclear)])
        return self._spread(self.best)

    def fill_exactly(self, part: Part, changes: jax.Array) -> None:
        """Compares the part's open slots weight by weight."""
        wanted = np.flatnonzero(np.isin(part.slots, self.open))
        groups, width, _ = part.chunks[0].rows.shape
        chunk_of, place = np.divmod(part.place[wanted], groups * width)
        for number in np.unique(chunk_of):
            mine = chunk_of == number
            count = int(mine.sum())
            # A power of two: few programs, whatever the number.
            places = np.zeros(max(64, 1 << (count - 1).bit_length()), np.int32)
            places[:count] = place[mine]
            found = _exact(part.chunks[number], changes, places, self.distance == "change")
            self.exact[part.slots[wanted[mine]]] = np.asarray(found)[:count]

    def nearest_exactly(self) -> np.ndarray:
        """Returns each channel's model, with the open slots' distances weight by weight."""
        index, length = self.table.index, self.length[None]
        change = self.distance == "change"
        cost = self._sum(np.where(self.moved[index], self.exact[index], 0 if change else length))
        if change:
            squared, moved = self._sum(self.squared[index]), self._sum(self.moved[index])
            cost = self._disagreement(cost, squared, self._sum(length), moved)
        exact = np.argmin(np.where(self.near, cost, np.inf), axis=0)
        return self._spread(np.where(self.unclear, exact, self.best))

    def _disagreement(
        self, product: np.ndarray, squared: np.ndarray, length: np.ndarray, moved: np.ndarray
    ) -> np.ndarray:
        """Returns the cost of "change": minus an agreement above z, else 0 for what never changed, else 1."""
        parameters = [layer.parameters for layer in self.table.layers] if self.by_layer else self.table.size
        norm = np.sqrt(squared.astype(np.float64) * length)
        agreement = product / np.where(norm > 0, norm, np.inf) * np.sqrt(parameters)
        return np.where(agreement > self.z, -agreement, np.where(moved > 0, 1.0, 0.0))

    def _sum(self, values: np.ndarray) -> np.ndarray:
        """Returns (models, channels) as they are, or by layer: summed over its channels, in float64."""
        if not self.by_layer:
            return values
        return np.add.reduceat(values.astype(np.float64), self.table.first, axis=1)

    def _spread(self, values: np.ndarray) -> np.ndarray:
        """Returns (..., channels) as they are, or by layer: (..., layers) for each of its channels."""
        if not self.by_layer:
            return values
        return np.repeat(values, [layer.channels for layer in self.table.layers], axis=-1)


def of_any(layout: Layout, child: Mapping[str, Any], models: StoredModels, distance: str, z: float) -> Found:
    """Returns for every channel the nearest channel of the same layer, whichever its index: (model, channel).

    Args:
        layout: the backbone's layout.
        child: flat dict of the layers' leaves.
        models: the pool's models.
        distance: as in `Search`.
        z: as in `Search`.
    """
    tables = tables_of(layout, models, "rows")
    own, start = whole(tables, model_rows(layout, child), "rows"), starts(tables, models, "rows")
    channels = {name: table.index.shape[1] for name, table in tables.items()}
    best = {
        name: (np.full(count, np.inf, np.float32), np.zeros(count, np.int32))
        for name, count in channels.items()
    }
    for block in blocks(tables, models, "rows"):
        for name, part in block.items():
            table = tables[name]
            # Ties go to the oldest model, then to the lowest channel: to a slot's first place in `index`.
            first = np.full(len(table.channel), table.index.size)
            np.minimum.at(first, table.index.ravel(), np.arange(table.index.size))
            groups, width, _ = part.chunks[0].rows.shape
            place = np.full((len(part.chunks), groups * width), -1, np.int32)
            place.ravel()[part.place] = first[part.slots]
            for chunk, places in zip(part.chunks, place, strict=True):
                best[name] = _nearer(chunk, places, own[name], start[name], best[name], distance, z)
    return {name: np.divmod(np.asarray(place), channels[name]) for name, (_, place) in best.items()}


@jax.jit
def _changes(
    child: Mapping[str, jax.Array], start: Starts
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Returns the child's changes of every table, (channels, size), and their squared norms."""
    changes = {name: child[name] - start[name] for name in start}
    return changes, {name: jnp.sum(rows**2, axis=-1) for name, rows in changes.items()}


@jax.jit
def _products(chunk: Chunk, changes: jax.Array) -> jax.Array:
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("gws,gs->gw", chunk.rows, changes[chunk.channel], precision=highest)


@functools.partial(jax.jit, static_argnums=3)
def _exact(chunk: Chunk, changes: jax.Array, places: jax.Array, product: bool) -> jax.Array:
    group, width = jnp.divmod(places, chunk.rows.shape[1])
    rows, own = chunk.rows[group, width], changes[chunk.channel[group]]
    return jnp.sum(own * rows if product else (own - rows) ** 2, axis=-1)


@functools.partial(jax.jit, static_argnums=(5, 6))
def _nearer(
    chunk: Chunk,
    place: jax.Array,
    child: jax.Array,
    start: jax.Array,
    best: tuple[jax.Array, jax.Array],
    distance: str,
    z: float,
) -> tuple[jax.Array, jax.Array]:
    """Returns the lowest cost of each channel and its place, of the best so far and a chunk's rows."""
    rows = chunk.rows.reshape(len(place), -1)

    def nearer(channel):
        own, before, cost, known = channel
        costs = jnp.where(place >= 0, _distances(own, rows, before, distance, z), jnp.inf)
        lowest = jnp.minimum(cost, jnp.min(costs))
        first = jnp.min(jnp.where((costs == lowest) & (place >= 0), place, jnp.iinfo(jnp.int32).max))
        return lowest, jnp.where(cost == lowest, jnp.minimum(first, known), first)

    # One channel of the child at a time: exact differences without a (channels, rows, size) array.
    return jax.lax.map(nearer, (child, start, *best))


def _distances(child: jax.Array, rows: jax.Array, start: jax.Array, distance: str, z: float) -> jax.Array:
    """Returns the distance of a channel to every row, weight by weight."""
    if distance == "l2":
        return jnp.sum((child - rows) ** 2, axis=-1)
    if distance == "cosine":
        # One minus the cosine, as half the squared distance of the directions: 1 - x cancels near 1.
        return 0.5 * jnp.sum((_direction(child) - _direction(rows)) ** 2, axis=-1)
    change = rows - start
    cosine = jnp.sum(_direction(child - start) * _direction(change), axis=-1)
    agreement = cosine * math.sqrt(child.shape[-1])
    # A row that never changed is the pre-trained one: it costs 0, and others have to beat it by z.
    unmoved = jnp.all(change == 0, axis=-1)
    return jnp.where(agreement > z, -agreement, jnp.where(unmoved, 0.0, 1.0))


def _direction(rows: jax.Array) -> jax.Array:
    """Returns rows of length 1 along the last axis; zero rows stay zero."""
    norm = jnp.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / jnp.where(norm > 0, norm, 1)
