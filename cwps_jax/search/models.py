"""Models as the stored rows that they consist of; a task may borrow rows that another one stores."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cwps_jax.core.channels import Layer, Layout, Shape, to_columns
from cwps_jax.search.slots import Sketched, Slots, in_threads, runs

STRIP = 64  # fan-in at a time, when a matrix is turned: a stretch that the processor's caches hold

Rows = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class StoredModels:
    """The models of a pool, oldest first and the pre-trained one at 0, as the rows that they consist of.

    Attributes:
        owner: {path of a kernel: int (models, channels)}, the id of each channel's owner, in the layout's
            order; older owners have smaller ids, and 0 is the pre-trained model.
        row: {path of a kernel: int (models, channels)}, the row's number at its owner; the pre-trained
            model's rows are its channels.
        read: an owner's id to its stored rows, {path of a leaf: (rows, fan-in)}.
        sketch: an owner's id to its `cwps_jax.search.sketch`; the pre-trained model needs none.
        pretrained: gives the pre-trained model's leaves in their own shapes, a flat dict.

    `read` and `sketch` are called by several threads.
    """

    owner: Mapping[str, np.ndarray]
    row: Mapping[str, np.ndarray]
    read: Callable[[int], Rows]
    sketch: Callable[[int], Rows]
    pretrained: Callable[[], Mapping[str, Any]]

    @functools.cached_property
    def slots(self) -> Slots:
        """The candidates of a search; they are found once, and kept for the next search."""
        return Slots.of(*(np.concatenate([*each.values()], axis=1) for each in (self.owner, self.row)))

    @functools.cached_property
    def mine(self) -> Slots:
        """The slots whose rows this process compares: all of them, unless there are other processes."""
        return self.slots.mine()

    @functools.cached_property
    def sketched(self) -> Sketched | None:
        """The sketches of this process's slots; None if there are none."""
        channels = [owner.shape[1] for owner in self.owner.values()]
        return Sketched.of(self.mine, channels, self.sketch)


def model_rows(layout: Layout, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns a whole model's rows, {path of a leaf: (channels, fan-in)}.

    Args:
        layout: the backbone's layout.
        params: flat dict of leaves that has the layers'.
    """
    return {leaf: rows for layer in layout.layers for leaf, rows in layer_rows(layer, params).items()}


def layer_rows(layer: Layer, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns `model_rows` of one layer."""
    return {leaf: _turned(np.asarray(params[leaf]), layer.gate_shape) for leaf in layer.leaves}


def _turned(leaf: np.ndarray, gate_shape: Shape) -> np.ndarray:
    columns = to_columns(leaf, gate_shape)
    rows = np.empty(columns.shape[::-1], columns.dtype)
    for first in range(0, len(columns), STRIP):
        rows[:, first : first + STRIP] = columns[first : first + STRIP].T
    return rows


def joined(layer: Layer, stored: Rows, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
    """Returns stored rows of a layer, bias last, float32 (rows, size)."""
    leaves = [stored[leaf][rows] for leaf in layer.leaves]
    return np.asarray(leaves[0] if len(leaves) == 1 else np.concatenate(leaves, axis=1), np.float32)


def gather(
    layout: Layout,
    owner: Mapping[str, np.ndarray],
    row: Mapping[str, np.ndarray],
    read: Callable[[int], Rows],
    pretrained: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """Returns the layers' leaves, a flat dict, whose channels are the named rows.

    Args:
        layout: the backbone's layout.
        owner: {path of a kernel: int (channels,)}.
        row: {path of a kernel: int (channels,)}, the row's number at its owner.
        read: as in `StoredModels`; several threads call it.
        pretrained: the pre-trained model's leaves.
    """

    def take(layer: Layer) -> dict[str, np.ndarray]:
        leaves = {leaf: np.array(pretrained[leaf], order="C") for leaf in layer.leaves}
        who, where = owner[layer.path], row[layer.path]
        # Most channels are the pre-trained model's own, which the copy has.
        taken = np.flatnonzero((who != 0) | (where != np.arange(layer.channels)))
        taken = taken[np.argsort(who[taken], kind="stable")]
        for leaf in layer.leaves if len(taken) else ():
            _put(leaves[leaf], layer.gate_shape, taken, looked_up(leaf, who[taken], where[taken], read))
        return leaves

    return {leaf: rows for leaves in in_threads(take, layout.layers) for leaf, rows in leaves.items()}


def looked_up(leaf: str, owner: np.ndarray, row: np.ndarray, read: Callable[[int], Rows]) -> np.ndarray:
    """Returns named rows of a leaf, (rows, fan-in), at least one.

    Those of an owner should be next to each other: each such run is one look-up.
    """
    return np.concatenate([read(int(owner[first]))[leaf][row[first:last]] for first, last in runs(owner)])


def _put(leaf: np.ndarray, gate_shape: Shape, taken: np.ndarray, rows: np.ndarray) -> None:
    """Writes rows into the channels of a leaf that are taken, in place."""
    if leaf.ndim != len(gate_shape):
        leaf = leaf.reshape(gate_shape)
    axes = [axis for axis, size in enumerate(gate_shape) if size != 1]
    first = np.moveaxis(leaf, axes, range(len(axes))) if axes else leaf[None]
    sizes = first.shape[: max(1, len(axes))]
    first[np.unravel_index(taken, sizes)] = rows.reshape(-1, *first.shape[len(sizes) :])
