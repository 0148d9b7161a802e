"""What the search compares: every stored row of a pool once, by default as its change since pre-training.

Models share rows: what a task borrowed is stored by another. So the search does not read models; it reads
*slots*, the distinct (channel, owner, row) of all models, block by block of the rows' owners. The
pre-trained model's own channels need no slot of their own: their change is zero.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from cwps_jax.core.channels import Layer, Layout
from cwps_jax.core.stored import Rows, StoredModels

BLOCK_BYTES = 1 << 30  # rows that are read and compared at a time
CHUNK_BYTES = 16 << 20  # rows of one compiled call: beyond this size, all pools share one program
WIDEST = 8  # rows of one channel that are compared together


@dataclasses.dataclass(frozen=True)
class Slots:
    """The distinct candidates of layers whose channels have one size, ordered by channel, owner and row.

    Attributes:
        layers: the layers; their channels are counted through.
        index: int (models, channels), the slot of each model's channel; slot 0 holds no row: it is the
            pre-trained model's own channel, whichever that is.
        channel: int (slots,), the channel that a slot is compared with.
        owner: int (slots,), who stores it.
        row: int (slots,), where.
    """

    layers: tuple[Layer, ...]
    index: np.ndarray
    channel: np.ndarray
    owner: np.ndarray
    row: np.ndarray

    @classmethod
    def of(cls, layers: Sequence[Layer], models: StoredModels, *, pretrained: bool = False) -> "Slots":
        """Finds the slots; with `pretrained`, its own channels have slots like any other."""
        owner, row = (
            np.concatenate([values[layer.path] for layer in layers], axis=1).astype(np.int64)
            for values in (models.owner, models.row)
        )
        own = np.concatenate([np.arange(layer.channels) for layer in layers])
        owners, rows = owner.max() + 1, row.max() + 1
        key = (np.arange(len(own)) * owners + owner) * rows + row
        if not pretrained:
            key[(owner == 0) & (row == own)] = -1
        unique, index = np.unique(np.append(key, -1), return_inverse=True)
        pair, row = np.divmod(unique, rows)
        channel, owner = np.divmod(pair, owners)
        channel[0] = owner[0] = row[0] = 0
        return cls(tuple(layers), index[:-1].reshape(key.shape), channel, owner, row)

    @property
    def first(self) -> np.ndarray:
        """int (layers,), number of the first channel of every layer."""
        return np.cumsum([0, *(layer.channels for layer in self.layers[:-1])])

    @property
    def size(self) -> int:
        """Parameters of a channel."""
        return self.layers[0].channel_parameters


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Rows that one compiled call compares, grouped by channel; groups are filled with zeros.

    Attributes:
        channel: int32 (groups,), the channel of each group.
        rows: float32 (groups, width, size).
    """

    channel: jax.Array
    rows: jax.Array


@dataclasses.dataclass(frozen=True)
class Part:
    """One block's part of a table.

    Attributes:
        slots: int (n,), which of the table's slots it has.
        place: int (n,), where each of them stands in the chunks, counted through groups and widths.
        chunks: their rows.
        squared: float32 (n,), squared norms of the rows, computed once.
        moved: bool (n,), whether a row is anywhere other than zero.
    """

    slots: np.ndarray
    place: np.ndarray
    chunks: tuple[Chunk, ...]
    squared: np.ndarray
    moved: np.ndarray


jax.tree_util.register_dataclass(Chunk)
jax.tree_util.register_dataclass(Part)
Tables = Mapping[str, Slots]  # by the path of their first layer
Starts = Mapping[str, jax.Array]
Form = Literal["changes", "directions", "rows"]


def tables_of(layout: Layout, models: StoredModels, form: Form) -> Tables:
    """Returns the slots of all layers: for "rows" a table a layer, else one for each size of a channel.

    Layers whose channels have one size share a table, and so compiled programs.
    """
    groups: dict[Any, list[Layer]] = {}
    for layer in layout.layers:
        groups.setdefault(layer.path if form == "rows" else layer.channel_parameters, []).append(layer)

    def make() -> Tables:
        return {
            layers[0].path: Slots.of(layers, models, pretrained=form == "rows") for layers in groups.values()
        }

    return models.remembered(("tables", layout, form == "rows"), make)


def starts(tables: Tables, models: StoredModels, form: Form) -> Starts:
    """Returns the pre-trained channels of every table, float32 (channels, size).

    Args:
        tables: the slots.
        models: the models.
        form: "directions" scales channels to length 1.
    """

    def make() -> dict[str, jax.Array]:
        return {name: jnp.asarray(rows) for name, rows in whole(tables, models.read(0), form).items()}

    return models.kept.get(("starts", tuple(tables), form), make)


def whole(tables: Tables, rows: Rows, form: Form) -> dict[str, np.ndarray]:
    """Returns all channels of every table, float32 (channels, size), of a whole model's rows."""
    return {
        name: np.concatenate([_rows(layer, rows, slice(None), form) for layer in table.layers])
        for name, table in tables.items()
    }


def blocks(tables: Tables, models: StoredModels, form: Form) -> Iterator[dict[str, Part]]:
    """Yields all slots but the pre-trained model's own, some owners at a time: {table: its part}.

    Args:
        tables: the slots.
        models: the models.
        form: "changes", rows less their channel's start; "directions", the same of rows and starts scaled
            to length 1; "rows", as they are.
    """
    plan = models.remembered(("plan", tuple(tables), form), lambda: list(_plan(tables)))
    for owners, wanted, content in plan:

        def make(owners=owners, wanted=wanted) -> dict[str, tuple[Any, ...]]:
            return _parts(tables, models, owners, wanted, form)

        parts = models.kept.get((owners, form, content), make)
        # Slots are numbered anew when the pool grows; what is kept of a block is not.
        yield {name: Part(wanted[name], *part) for name, part in parts.items()}


def _plan(tables: Tables) -> Iterator[tuple[tuple[int, ...], dict[str, np.ndarray], bytes]]:
    """Yields the owners of each block, its slots in every table, and a digest of what these are."""
    for owners in _owner_blocks(tables):
        wanted, content = {}, hashlib.sha256()
        for name, table in tables.items():
            slots = 1 + np.flatnonzero(np.isin(table.owner[1:], owners))
            if len(slots):
                wanted[name] = slots
            for values in (table.channel, table.owner, table.row):
                content.update(values[slots].tobytes())
        yield owners, wanted, content.digest()


def _owner_blocks(tables: Tables) -> Iterator[tuple[int, ...]]:
    """Owners, oldest first: a pool that grows changes the last block alone."""
    stored: dict[int, int] = {}
    for table in tables.values():
        owners, counts = np.unique(table.owner[1:], return_counts=True)
        for owner, count in zip(owners.tolist(), counts.tolist(), strict=True):
            stored[owner] = stored.get(owner, 0) + count * table.size * 4
    block: list[int] = []
    for owner in sorted(stored):
        if block and sum(stored[one] for one in (*block, owner)) > BLOCK_BYTES:
            yield tuple(block)
            block = []
        block.append(owner)
    if block:
        yield tuple(block)


def _parts(
    tables: Tables,
    models: StoredModels,
    owners: tuple[int, ...],
    wanted: Mapping[str, np.ndarray],
    form: Form,
) -> dict[str, tuple[Any, ...]]:
    """Reads the rows of each owner once. Returns what a `Part` has beside its slots."""
    initial = {name: np.asarray(start) for name, start in starts(tables, models, form).items()}
    places = {name: _places(tables[name], slots) for name, slots in wanted.items()}
    filled = {
        name: np.zeros((channel.size * width, tables[name].size), np.float32)
        for name, (_, channel, width) in places.items()
    }
    for owner in owners:
        stored = models.read(owner)
        for name, slots in wanted.items():
            table, place = tables[name], places[name][0]
            mine = np.flatnonzero(table.owner[slots] == owner)
            layer_of = np.searchsorted(table.first, table.channel[slots[mine]], side="right") - 1
            for layer in np.unique(layer_of):
                placed = mine[layer_of == layer]
                rows = _rows(table.layers[layer], stored, table.row[slots[placed]], form)
                if form != "rows":
                    rows -= initial[name][table.channel[slots[placed]]]
                filled[name][place[placed]] = rows
    parts = {}
    for name, (place, channel, width) in places.items():
        rows = filled.pop(name).reshape(*channel.shape, width, -1)
        chunks = tuple(Chunk(*jax.device_put(one)) for one in zip(channel, rows, strict=True))
        measured = [jax.device_get(_measured(chunk.rows)) for chunk in chunks]
        squared, moved = (
            np.concatenate([one.ravel() for one in each]) for each in zip(*measured, strict=True)
        )
        parts[name] = place, chunks, squared[place], moved[place]
    return parts


def _places(table: Slots, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns where each slot stands, the groups' channels, int32 (chunks, groups), and the groups' width.

    A channel's slots fill groups of one width, so that a group is one product of its rows and the child's
    channel. Groups of a chunk are a power of two, and a chunk's largest size does not depend on the pool.
    """
    channels, first, counts = np.unique(table.channel[slots], return_index=True, return_counts=True)
    width = 1
    while width < WIDEST and 4 * width <= counts.mean():
        width *= 2
    groups = -(-counts // width)
    position = np.repeat((np.cumsum(groups) - groups) * width - first, counts) + np.arange(len(slots))
    total = int(groups.sum())
    most = max(1, CHUNK_BYTES // (4 * table.size * width))
    chunk = 1 << min((total - 1).bit_length(), most.bit_length() - 1)
    padded = -(-total // chunk) * chunk
    channel = np.zeros(padded, np.int32)
    channel[:total] = np.repeat(channels, groups)
    return position, channel.reshape(-1, chunk), width


def _rows(layer: Layer, stored: Rows, rows: Any, form: Form) -> np.ndarray:
    if len(layer.leaves) == 1 and form != "directions":
        return np.asarray(stored[layer.path][rows], np.float32)
    found = np.concatenate(
        [np.asarray(stored[leaf])[rows] for leaf in layer.leaves], axis=1, dtype=np.float32
    )
    if form == "directions":
        norm = np.linalg.norm(found, axis=1, keepdims=True)
        found /= np.where(norm > 0, norm, 1)
    return found


@jax.jit
def _measured(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.sum(rows**2, axis=-1), jnp.any(rows != 0, axis=-1)
