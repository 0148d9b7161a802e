"""Models as the stored rows that they are made of: what one task borrowed is stored by another."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cwps_jax.core.channels import Layer, Layout, Shape, to_columns
from cwps_jax.core.recent import Recent

SEARCH_GIGABYTES = 4.0  # of the host's memory, for the rows that stay from one search to the next
ALIGNMENT = 64  # bytes, of XLA's buffers on a CPU

Rows = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class StoredModels:
    """The models of a pool, oldest first and the pre-trained one at 0, as the stored rows they are made of.

    Attributes:
        owner: {path of a kernel: int (models, channels)}, the id of each channel's owner; older owners
            have smaller ids, and 0 is the pre-trained model.
        row: the same, the row there; the pre-trained model's rows are its channels.
        read: an owner's id to its stored rows, {path of a leaf: (rows, fan-in)}.
        pretrained: gives the pre-trained model's leaves in their own shapes, a flat dict.
        kept: rows that were read for earlier searches, of these models and of a smaller pool's.
        planned: what one search has worked out about these models for the next.
    """

    owner: Mapping[str, np.ndarray]
    row: Mapping[str, np.ndarray]
    read: Callable[[int], Rows]
    pretrained: Callable[[], Mapping[str, Any]]
    kept: Recent = dataclasses.field(default_factory=lambda: Recent(int(SEARCH_GIGABYTES * 1e9)))
    planned: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False)

    def remembered(self, key: Any, make: Callable[[], Any]) -> Any:
        """Returns what `make` gave when it was first called for this key and these models."""
        if key not in self.planned:
            self.planned[key] = make()
        return self.planned[key]


def model_rows(layout: Layout, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns a whole model's rows, {path of a leaf: (channels, fan-in)}.

    Args:
        layout: the backbone's layout.
        params: flat dict of leaves that has the layers'.
    """
    return copied(
        {
            leaf: to_columns(np.asarray(params[leaf]), layer.gate_shape).T
            for layer in layout.layers
            for leaf in layer.leaves
        }
    )


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
        row: the same, the row there.
        read: as in `StoredModels`.
        pretrained: the pre-trained model's leaves.
    """
    leaves = copied_layers(layout, pretrained)
    for layer in layout.layers:
        write(layer, owner[layer.path], row[layer.path], read, leaves)
    return leaves


def copied_layers(layout: Layout, leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns `copied` leaves of the layers alone."""
    return copied({leaf: np.asarray(leaves[leaf]) for leaf in layout.layer_paths})


def write(
    layer: Layer,
    owner: np.ndarray,
    row: np.ndarray,
    read: Callable[[int], Rows],
    leaves: Mapping[str, np.ndarray],
) -> None:
    """Writes a layer's named rows, as in `gather`, into a copy of the pre-trained model's leaves.

    Most channels are that model's own; there is nothing to do for these.
    """
    taken = np.flatnonzero((owner != 0) | (row != np.arange(layer.channels)))
    if not len(taken):
        return
    taken = taken[np.argsort(owner[taken], kind="stable")]
    for leaf in layer.leaves:
        _put(leaves[leaf], layer.gate_shape, taken, looked_up(leaf, owner[taken], row[taken], read))


def looked_up(leaf: str, owner: np.ndarray, row: np.ndarray, read: Callable[[int], Rows]) -> np.ndarray:
    """Returns named rows of a leaf, (rows, fan-in), at least one.

    Those of an owner should be next to each other: each such run is one look-up.
    """
    bounds = [0, *(np.flatnonzero(np.diff(owner)) + 1).tolist(), len(owner)]
    runs = itertools.pairwise(bounds)
    return np.concatenate([read(int(owner[first]))[leaf][row[first:last]] for first, last in runs])


def copied(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns copies in C order, which share one piece of memory that is `aligned_zeros`."""
    copies = aligned_zeros(arrays)
    for key, array in arrays.items():
        copies[key][...] = array
    return copies


def aligned_zeros(like: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns zeros of the same shapes and types, which a CPU device takes as they are, without a copy.

    They share one piece of memory: a system gives it in larger pages, several times faster than many.
    """
    sizes = [math.prod(one.shape) * one.dtype.itemsize for one in like.values()]
    *starts, end = np.cumsum([0, *(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)]).tolist()
    raw = np.zeros(end + ALIGNMENT, np.uint8)
    raw = raw[-raw.ctypes.data % ALIGNMENT :]
    return {
        key: raw[start : start + size].view(one.dtype).reshape(one.shape)
        for (key, one), start, size in zip(like.items(), starts, sizes, strict=True)
    }


def _put(leaf: np.ndarray, gate_shape: Shape, taken: np.ndarray, rows: np.ndarray) -> None:
    """Writes rows into the channels of a leaf that are taken, in place."""
    if leaf.ndim != len(gate_shape):
        leaf = leaf.reshape(gate_shape)
    axes = [axis for axis, size in enumerate(gate_shape) if size != 1]
    first = np.moveaxis(leaf, axes, range(len(axes))) if axes else leaf[None]
    sizes = first.shape[: max(1, len(axes))]
    first[np.unravel_index(taken, sizes)] = rows.reshape(-1, *first.shape[len(sizes) :])
