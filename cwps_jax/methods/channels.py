"""The stored form of a network of shared channels: its own rows, and the owner of each other channel.

::

    rows: <leaf>              its open channels, channel-major (open, fan-in)
    own:  masks/<kernel>      uint8, one bit per channel, packed; one number if all are open or closed
          owner/<kernel>      for each closed channel, the number of the version that stores it
          row/<kernel>        ... and its row there (for the pre-trained model, the channel)
          params/<leaf>       norms, other private leaves, and the head, as they are
          other/<collection>  norm statistics

Ownership is resolved when a version is written, to the version that really stores the row, so a look-up
never follows a chain.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from cwps_jax.core import packing
from cwps_jax.core.channels import Layer, Layout
from cwps_jax.core.trees import Tree, flatten, unflatten
from cwps_jax.methods.method import Finished, Restoring, Stored
from cwps_jax.search.composite import Source
from cwps_jax.search.models import StoredModels, gather

Ownership = dict[str, tuple[np.ndarray, np.ndarray]]


def store_finished(finished: Finished) -> Stored:
    """Returns the stored form of a task whose last rule gave hard gates."""
    moment = finished.moment
    sources = moment.found.get("sources", {})
    stored = store_channels(
        moment.network.layout, finished.params, finished.other, finished.gates, sources, moment.pool.models
    )
    return dataclasses.replace(stored, step=moment.frozen.get("step"))


def store_channels(
    layout: Layout,
    params: Tree,
    other: Mapping[str, Tree],
    gates: Tree,
    sources: Mapping[str, Source],
    models: StoredModels,
) -> Stored:
    """Returns the stored form of a network of shared channels.

    Args:
        layout: the backbone's layout.
        params: nested dict, the plain backbone's parameters, mixed.
        other: its other collections.
        gates: nested dict of hard gates; open channels are stored.
        sources: {path of a kernel: where the closed channels came from}; a layer that is missing took them
            from the pre-trained model at the same index.
        models: the models to which `sources` refers.
    """
    flat_gates, leaves = (
        {path: np.asarray(leaf) for path, leaf in flatten(tree).items()} for tree in (gates, params)
    )
    owners, rows, masks = {}, {}, {}
    for layer in layout.layers:
        gate = flat_gates[layer.path].ravel()
        owner, row = parent_rows(layer, sources.get(layer.path), models)
        owners[layer.path], rows[layer.path] = smallest(owner[~gate]), smallest(row[~gate])
        masks[layer.path] = pack_bits(gate)
    layer_paths = set(layout.layer_paths)
    own = {
        "masks": unflatten(masks),
        "owner": unflatten(owners),
        "row": unflatten(rows),
        "params": unflatten({path: leaf for path, leaf in leaves.items() if path not in layer_paths}),
        "other": dict(other),
    }
    return Stored(own, packing.pack(layout, unflatten(leaves), unflatten(flat_gates)))


def parent_rows(layer: Layer, source: Source | None, models: StoredModels) -> tuple[np.ndarray, np.ndarray]:
    """Returns the owner of each channel of a layer's parent, int64 (channels,), and its row there."""
    if source is None:
        return np.zeros(layer.channels, np.int64), np.arange(layer.channels, dtype=np.int64)
    where = np.asarray(source.model), np.asarray(source.channel)
    return models.owner[layer.path][where].astype(np.int64), models.row[layer.path][where].astype(np.int64)


def ownership(layout: Layout, own: Mapping[str, np.ndarray], identity: int) -> Ownership:
    """Returns {path of a kernel: (number of each channel's owner, its row there)}, int32 (channels,).

    Args:
        layout: the backbone's layout.
        own: {path: array}, the stored arrays without the rows.
        identity: number of the version itself.
    """
    found = {}
    for layer in layout.layers:
        is_open = unpack_bits(own[f"masks/{layer.path}"], layer.channels)
        owner = np.full(layer.channels, identity, np.int32)
        row = np.cumsum(is_open, dtype=np.int32) - 1
        owner[~is_open], row[~is_open] = own[f"owner/{layer.path}"], own[f"row/{layer.path}"]
        found[layer.path] = owner, row
    return found


def opened(layer: Layer, own: Mapping[str, Any]) -> np.ndarray:
    """Returns the channels of a layer that are stored as rows of its own, int (rows,), ascending."""
    return np.flatnonzero(unpack_bits(np.asarray(own[f"masks/{layer.path}"]), layer.channels))


def gates_of(layout: Layout, own: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the hard gates of a stored task, a nested dict of boolean arrays."""
    return unflatten(
        {
            layer.path: unpack_bits(own[f"masks/{layer.path}"], layer.channels).reshape(layer.gate_shape)
            for layer in layout.layers
        }
    )


def restore_channels(view: Restoring) -> dict[str, Any]:
    """Returns {"params": the plain backbone's parameters}, equal to the bit to those that were trained."""
    found = ownership(view.layout, view.own, view.identity)
    owner, row = ({path: pair[one] for path, pair in found.items()} for one in (0, 1))
    shared = gather(view.layout, owner, row, view.rows, view.pretrained)
    return {"params": unflatten({**view.under("params"), **shared})}


def pack_bits(mask: np.ndarray) -> np.ndarray:
    """Returns a mask as bits, uint8; one number, without axes, if all of it is the same."""
    flat = np.ravel(np.asarray(mask, bool))
    if flat.size and (flat.all() or not flat.any()):
        return np.asarray(flat[0], np.uint8)
    return np.packbits(flat)


def unpack_bits(bits: np.ndarray, count: int) -> np.ndarray:
    """Inverse of `pack_bits`: bool (count,)."""
    if not bits.ndim:
        return np.full(count, bool(bits))
    return np.unpackbits(bits, count=count).astype(bool)


def smallest(values: np.ndarray) -> np.ndarray:
    """Returns whole numbers in the smallest unsigned type that holds them."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))
