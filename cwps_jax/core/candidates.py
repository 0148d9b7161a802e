"""What the search compares: every stored row of a pool once, by default as its change since pre-training.

Models share rows: what a task borrowed is stored by another. So the search does not read models; it reads
*slots*, the distinct (channel, owner, row) of all models, block by block of the rows' owners. What is
compared first, and kept for the next search, can be rounded to 8 bits, with how far that took each row. All
of it is on the host.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import jax
import numpy as np

from cwps_jax.core.channels import Layer, Layout
from cwps_jax.core.stored import Rows, StoredModels, aligned_zeros, looked_up

READERS = 8  # threads that wait for files and hash them, without Python's lock
WORKERS = min(8, os.cpu_count() or 1)  # threads that subtract and round: no more than there are cores
BLOCK_BYTES = 1 << 30  # rows that are read at a time; two blocks are on all devices together
CHUNK_BYTES = 2 << 20  # one row of each channel that one compiled call compares
VANISHING = 1e-35  # a row that is smaller everywhere is zero in 8 bits: no float32 is left for its scale

Form = Literal["changes", "directions", "rows"]


@dataclasses.dataclass(frozen=True)
class Slots:
    """A layer's distinct candidates, ordered by channel, and by the oldest model that has them.

    Attributes:
        layer: the layer.
        index: int (channels, models), the slot of each model's channel.
        channel: int (slots,), the channel whose candidate it is.
        model: int (slots,), the oldest model that has it: a channel's first slot is the pre-trained one's.
        owner: int (slots,), who stores it.
        row: int (slots,), where.
    """

    layer: Layer
    index: np.ndarray
    channel: np.ndarray
    model: np.ndarray
    owner: np.ndarray
    row: np.ndarray

    @classmethod
    def of(cls, layer: Layer, models: StoredModels) -> "Slots":
        """Finds the slots of a layer."""
        owner, row = (values[layer.path].T.astype(np.int64) for values in (models.owner, models.row))
        key = np.arange(layer.channels)[:, None] * (owner.max() + 1) + owner
        _, first, inverse = np.unique(key * (row.max() + 1) + row, return_index=True, return_inverse=True)
        order = np.argsort(first)
        first = first[order]
        channel, model = np.divmod(first, key.shape[1])
        index = np.argsort(order)[inverse.reshape(key.shape)]
        return cls(layer, index, channel, model, owner.ravel()[first], row.ravel()[first])

    @property
    def identity(self) -> np.ndarray:
        """int (3, slots), what a slot is in any pool: its channel, owner and row."""
        return np.stack([self.channel, self.owner, self.row])

    @property
    def unchanged(self) -> np.ndarray:
        """bool (slots,), which are the pre-trained model's own channels: their change is zero."""
        return (self.owner == 0) & (self.row == self.channel)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Part:
    """One block's rows of a layer in chunks, each of some channels with all of their rows.

    Attributes:
        place: int (slots,), where the row of each slot stands.
        squared: float32 (slots,), squared norms of the rows: 0 where a channel has not moved.
        scale: float32 (slots,), what `rows` are to be multiplied by.
        error: float32 (slots,), the norm of what is still missing then: 0 unless they are rounded.
        channel: int32 (chunks, groups), the channels of each chunk.
        widths: how many rows each channel of a chunk has, filled with zeros.
        rows: float32, or int8 where they are rounded, (rows, size), chunk by chunk.
    """

    place: np.ndarray
    squared: np.ndarray
    scale: np.ndarray
    error: np.ndarray
    channel: np.ndarray
    widths: list[int]
    rows: np.ndarray

    def split(self, values: np.ndarray) -> list[np.ndarray]:
        """Returns views of the chunks, (groups, width, ...), of values that stand as the rows do."""
        groups = self.channel.shape[1]
        chunks = np.split(values, groups * np.cumsum(self.widths)[:-1])
        return [chunk.reshape(groups, -1, *values.shape[1:]) for chunk in chunks]


Block = list[tuple[str, np.ndarray, Part]]


def slots_of(layout: Layout, models: StoredModels) -> dict[str, Slots]:
    """Returns the slots of every layer, by its path."""

    def found() -> dict[str, Slots]:
        with ThreadPoolExecutor(WORKERS) as threads:
            slots = threads.map(lambda layer: Slots.of(layer, models), layout.layers)
        return {one.layer.path: one for one in slots}

    return models.remembered(("slots", layout), found)


def blocks(layout: Layout, models: StoredModels, form: Form, rounded: bool) -> Iterator[Block]:
    """Yields the rows of all slots, some owners at a time: (path, slots, their rows) for each layer.

    Args:
        layout: the backbone's layout.
        models: the models.
        form: "changes", rows less their channel's start, without the unchanged; "directions", the same of
            rows and starts scaled to length 1; "rows", as they are.
        rounded: to 8 bits, each row by a scale of its own.
    """
    slots = slots_of(layout, models)
    dtype = np.dtype(np.int8 if rounded else np.float32)
    planned = models.remembered((form, dtype, layout), lambda: list(_plan(slots, form, dtype)))
    # What is kept comes first: of a pool that is too large, each block would else be dropped before its turn.
    for held, owners, chosen in sorted(planned, key=lambda block: block[0] not in models.kept):
        # Slots are numbered anew when the pool grows; what is kept of a block is not.
        parts = models.kept.get(held, functools.partial(_parts, slots, models, owners, chosen, form, dtype))
        yield [(path, chosen[path], part) for path, part in parts.items()]


def slot_rows(slots: Slots, models: StoredModels, chosen: np.ndarray, form: Form) -> np.ndarray:
    """Returns rows of a layer, `looked_up`, in a form of `blocks`: float32 (chosen, size)."""
    layer, owner, row = slots.layer, slots.owner[chosen], slots.row[chosen]
    rows = _joined([looked_up(leaf, owner, row, models.read) for leaf in layer.leaves], form)
    if form != "rows":
        rows -= channel_rows(layer, models.read(0), slots.channel[chosen], form)
    return rows


def channel_rows(layer: Layer, stored: Rows, rows: np.ndarray | slice, form: Form) -> np.ndarray:
    """Returns stored rows of a layer, bias last, float32 (rows, size): as directions, or as they are."""
    return _joined([stored[leaf][rows] for leaf in layer.leaves], form)


def _joined(leaves: list[np.ndarray], form: Form) -> np.ndarray:
    rows = np.asarray(leaves[0] if len(leaves) == 1 else np.concatenate(leaves, axis=1), np.float32)
    return direction(rows) if form == "directions" else rows


def direction(rows: Any) -> Any:
    """Returns rows of length 1 along the last axis; zero rows stay zero. NumPy stays NumPy."""
    numpy = rows.__array_namespace__()
    norm = numpy.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / numpy.where(norm > 0, norm, 1)


def _plan(
    slots: Mapping[str, Slots], form: Form, dtype: np.dtype
) -> Iterator[tuple[Any, list[int], dict[str, np.ndarray]]]:
    """Yields what each block is, its owners, and its slots by path; a growing pool changes the last one."""
    large = sorted(slots, key=lambda path: -slots[path].layer.parameters)
    read = {path: np.flatnonzero((form == "rows") | ~slots[path].unchanged) for path in large}
    size = np.zeros(1 + max(one.owner.max() for one in slots.values()), np.int64)
    for path, one in slots.items():
        count = np.bincount(one.owner[read[path]], minlength=len(size))
        size += dtype.itemsize * one.layer.channel_parameters * count
    blocks: list[list[int]] = []
    for owner in np.flatnonzero(size).tolist():
        if not blocks or size[[*blocks[-1], owner]].sum() > BLOCK_BYTES:
            blocks.append([])
        blocks[-1].append(owner)
    for owners in blocks:
        chosen = {path: among[np.isin(slots[path].owner[among], owners)] for path, among in read.items()}
        chosen = {path: among for path, among in chosen.items() if len(among)}
        held = ((path, _digest(slots[path].identity[:, among])) for path, among in chosen.items())
        yield (form, dtype, *held), owners, chosen


def _digest(values: np.ndarray) -> bytes:
    return hashlib.sha256(values.tobytes()).digest()


def _parts(
    slots: Mapping[str, Slots],
    models: StoredModels,
    owners: list[int],
    chosen: Mapping[str, np.ndarray],
    form: Form,
    dtype: np.dtype,
) -> dict[str, Part]:
    """Reads the rows of each owner once."""
    placed = {path: _places(slots[path], among) for path, among in chosen.items()}
    rows = aligned_zeros(
        {
            path: jax.ShapeDtypeStruct(
                (channel.shape[1] * sum(widths), slots[path].layer.channel_parameters), dtype
            )
            for path, (_, channel, widths) in placed.items()
        }
    )
    squared, scale, error = (
        {path: np.full(len(among), value, np.float32) for path, among in chosen.items()}
        for value in (0, 1, 0)
    )

    def arrange(owner: int, ready: Future) -> None:
        ready.result()
        for path, among in chosen.items():
            mine = np.flatnonzero(slots[path].owner[among] == owner)
            if len(mine):
                found = slot_rows(slots[path], models, among[mine], form)
                squared[path][mine] = np.einsum("rs,rs->r", found, found)
                if dtype == np.int8:
                    found, scale[path][mine], error[path][mine] = _rounded(found)
                rows[path][placed[path][0][mine]] = found

    with ThreadPoolExecutor(READERS) as readers, ThreadPoolExecutor(WORKERS) as workers:
        list(workers.map(arrange, owners, [readers.submit(models.read, owner) for owner in owners]))
    return {
        path: Part(one[0], squared[path], scale[path], error[path], *one[1:], rows[path])
        for path, one in placed.items()
    }


def _rounded(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns rows over their scales, whole numbers, their scales, and the norms of what that leaves out.

    It uses up the rows.
    """
    most = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    scale = np.where(most > VANISHING, most, 1) / np.float32(127)
    rows /= scale[:, None]
    whole = np.rint(rows)
    rows -= whole
    return whole, scale, scale * np.sqrt(np.einsum("rs,rs->r", rows, rows))


def _places(slots: Slots, among: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Returns where each slot's row stands, the chunks' channels, int32 (chunks, groups), and their widths.

    A channel's rows are together, so that they are one product with the child's channel. Channels with as
    many rows share a chunk, which is as wide as its first one needs; the groups of a chunk depend on the
    layer alone, and its width is one of few, so that pools share programs.
    """
    channels, first, counts = np.unique(slots.channel[among], return_index=True, return_counts=True)
    most = max(1, CHUNK_BYTES // (4 * slots.layer.channel_parameters))
    groups = 1 << min(most.bit_length() - 1, (slots.layer.channels - 1).bit_length())
    order = np.argsort(-counts, kind="stable")
    channel = np.zeros(-(-len(channels) // groups) * groups, np.int32)
    channel[: len(channels)] = channels[order]
    widths = [_width(int(rows)) for rows in counts[order[::groups]]]
    begin = np.empty(len(channels), np.int64)
    each = np.repeat(widths, groups)[: len(order)]
    begin[order] = np.cumsum(each) - each
    place = np.repeat(begin - first, counts) + np.arange(len(among))
    return place, channel.reshape(-1, groups), widths


def _width(rows: int) -> int:
    """Returns the next number of three significant bits: at most a quarter more."""
    step = 1 << max(rows.bit_length() - 3, 0)
    return -(-rows // step) * step
