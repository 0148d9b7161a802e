"""Models as the stored rows that they are made of: what one task borrowed is stored by another."""

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cwps_jax.core.channels import Layout, from_rows, to_rows
from cwps_jax.core.recent import Recent

KEPT_BYTES = 2 << 30  # rows that stay in memory from one search to the next

Rows = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class StoredModels:
    """The models of a pool, oldest first and the pre-trained one at 0, as the stored rows they are made of.

    Attributes:
        owner: {path of a kernel: int (models, channels)}, the id of each channel's owner; older owners
            have smaller ids, and 0 is the pre-trained model.
        row: the same, the row there; the pre-trained model's rows are its channels.
        read: an owner's id to its stored rows, {path of a leaf: (rows, fan-in)}.
        kept: rows that were read for earlier searches, of these models and of a smaller pool's.
        planned: what one search has worked out about these models for the next.
    """

    owner: Mapping[str, np.ndarray]
    row: Mapping[str, np.ndarray]
    read: Callable[[int], Rows]
    kept: Recent = dataclasses.field(default_factory=lambda: Recent(KEPT_BYTES))
    planned: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False)

    def remembered(self, key: Any, make: Callable[[], Any]) -> Any:
        """Returns what `make` gave when it was first called for this key and these models."""
        if key not in self.planned:
            self.planned[key] = make()
        return self.planned[key]


def whole_models(layout: Layout, models: Mapping[str, Any], count: int) -> StoredModels:
    """Returns models that are in memory, each whole, as models of which each stores all of its rows.

    Args:
        layout: the backbone's layout.
        models: {path of a leaf: the models stacked on a leading axis}, the pre-trained one at 0.
        count: how many of them to use.
    """
    shapes = {layer.path: (count, layer.channels) for layer in layout.layers}
    return StoredModels(
        owner={path: np.broadcast_to(np.arange(count)[:, None], shape) for path, shape in shapes.items()},
        row={path: np.broadcast_to(np.arange(shape[1]), shape) for path, shape in shapes.items()},
        read=lambda number: model_rows(layout, {path: models[path][number] for path in layout.layer_paths}),
    )


def model_rows(layout: Layout, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns a whole model's rows, {path of a leaf: (channels, fan-in)}, in C order.

    Args:
        layout: the backbone's layout.
        params: flat dict of leaves that has the layers'.
    """
    return _contiguous(
        {
            leaf: to_rows(np.asarray(params[leaf]), layer.gate_shape)
            for layer in layout.layers
            for leaf in layer.leaves
        }
    )


def gather(
    layout: Layout,
    owner: Mapping[str, np.ndarray],
    row: Mapping[str, np.ndarray],
    read: Callable[[int], Rows],
) -> dict[str, np.ndarray]:
    """Returns the layers' leaves, a flat dict, whose channels are the named rows. Each owner is read once.

    Args:
        layout: the backbone's layout.
        owner: {path of a kernel: int (channels,)}.
        row: the same, the row there.
        read: as in `StoredModels`.
    """
    filled: dict[str, np.ndarray] = {}
    owners = np.unique(np.concatenate([owner[layer.path] for layer in layout.layers]))
    for identity in owners:
        stored = read(int(identity))
        for layer in layout.layers:
            taken = np.flatnonzero(owner[layer.path] == identity)
            for leaf in layer.leaves if len(taken) else ():
                rows = stored[leaf]
                if leaf not in filled:
                    filled[leaf] = np.empty((layer.channels, rows.shape[1]), rows.dtype)
                filled[leaf][taken] = rows[row[layer.path][taken]]
    shapes = {
        leaf: (layer.gate_shape, shape)
        for layer in layout.layers
        for leaf, shape in zip(layer.leaves, layer.shapes, strict=True)
    }
    turned = {leaf: from_rows(filled[leaf], *both).reshape(-1, both[1][-1]) for leaf, both in shapes.items()}
    return {leaf: matrix.reshape(shapes[leaf][1]) for leaf, matrix in _contiguous(turned).items()}


def _contiguous(turned: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns matrices in C order, on all cores and eight columns at a time: turning memory is slow."""

    def copied(matrix: np.ndarray) -> np.ndarray:
        if matrix.flags.c_contiguous:
            return matrix
        copy = np.empty(matrix.shape, matrix.dtype)
        for first in range(0, matrix.shape[1], 8):
            copy[:, first : first + 8] = matrix[:, first : first + 8]
        return copy

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        return dict(zip(turned, threads.map(copied, turned.values()), strict=True))
