"""The stored form of a network with single weights of its own over a parent of stored channels.

::

    own:  masks/<leaf>        uint8, one bit per weight, packed; one number where all are open or all closed
          weights/<leaf>      the open weights, in their order
          owner/<kernel>      for each channel of the parent, the number of the version that stores it
          row/<kernel>        ... and its row there
          params/<leaf>, other/<collection>   as for shared channels
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from cwps_jax.core.channels import Layout, from_columns, to_columns
from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.methods.channels import pack_bits, parent_rows, smallest, unpack_bits
from cwps_jax.methods.method import Finished, Restoring, Stored
from cwps_jax.search.models import gather


def store_finished(finished: Finished) -> Stored:
    """Returns the stored form of a task whose last rule gave a hard gate for every weight."""
    moment = finished.moment
    layout, sources = moment.network.layout, moment.found["sources"]
    params, gates = flatten(finished.params), flatten(finished.gates)
    layer_paths = set(layout.layer_paths)
    masks = {path: np.asarray(gates[path], bool) for path in layer_paths}
    found = {
        layer.path: parent_rows(layer, sources[layer.path], moment.pool.models) for layer in layout.layers
    }
    own = {
        "masks": unflatten({path: pack_bits(mask) for path, mask in masks.items()}),
        "weights": unflatten({path: np.asarray(params[path])[mask] for path, mask in masks.items()}),
        "owner": unflatten({path: smallest(owner) for path, (owner, _) in found.items()}),
        "row": unflatten({path: smallest(row) for path, (_, row) in found.items()}),
        "params": unflatten({path: leaf for path, leaf in params.items() if path not in layer_paths}),
        "other": dict(finished.other),
    }
    return Stored(own)


def restore_weights(view: Restoring) -> dict[str, Any]:
    """Returns {"params": the plain backbone's parameters}, equal to the bit to those that were trained."""
    owner, row = view.under("owner"), view.under("row")
    leaves = gather(view.layout, owner, row, view.rows, view.pretrained)
    for path, bits in view.under("masks").items():
        mask = unpack_bits(bits, leaves[path].size).reshape(leaves[path].shape)
        leaves[path][mask] = view.own[f"weights/{path}"]
    return {"params": unflatten({**view.under("params"), **leaves})}


def borrows(layout: Layout, own: Mapping[str, Any]) -> bool:
    """Whether the stored arrays of a version, {path: array}, are in this form, without rows of its own."""
    return all(f"owner/{layer.path}" in own and f"weights/{layer.path}" in own for layer in layout.layers)


def with_owners(
    layout: Layout, own: Mapping[str, Any], params: Mapping[str, np.ndarray], known: Mapping[int, int]
) -> Stored:
    """Returns the stored form of the same network in another pool: channels of missing owners become its own.

    Args:
        layout: the backbone's.
        own: {path: array or codes}, its stored arrays now.
        params: {path: array}, its plain parameters.
        known: {number of an owner now: its number then}; 0 is the pre-trained model in both.
    """
    changed = dict(own)
    for layer in layout.layers:
        owner, row = (np.asarray(own[f"{name}/{layer.path}"]).astype(np.int64) for name in ("owner", "row"))
        lost = ~np.isin(owner, [*known])
        changed[f"owner/{layer.path}"] = smallest(np.array([known.get(int(one), 0) for one in owner]))
        changed[f"row/{layer.path}"] = smallest(np.where(lost, np.arange(len(row)), row))
        for leaf, shape in zip(layer.leaves, layer.shapes, strict=True) if lost.any() else ():
            mask = unpack_bits(own[f"masks/{leaf}"], math.prod(shape)).reshape(shape)
            columns = np.array(to_columns(mask, layer.gate_shape))
            columns[:, lost] = True
            mask = from_columns(columns, layer.gate_shape, shape)
            changed[f"masks/{leaf}"] = pack_bits(mask)
            changed[f"weights/{leaf}"] = np.asarray(params[leaf])[mask]
    return Stored(unflatten(changed))
