"""Active channels <-> packed rows: what a task keeps of a layer, channel-major."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from cwps_jax.core.channels import Layout, from_rows, to_rows
from cwps_jax.core.trees import Tree, flatten, unflatten


def pack(
    layout: Layout, params: Tree, gates: Tree, capacity: Mapping[str, int] | None = None
) -> dict[str, jax.Array]:
    """Returns the active channels' rows of every layer's leaves.

    Args:
        layout: the backbone's layout.
        params: nested dict of parameters.
        gates: nested dict of hard gates.
        capacity: {path of a kernel: rows to return}, which makes it jit-compatible; rows beyond the
            active ones are zeros. None takes exactly the active channels, which needs concrete gates.

    Returns:
        {path of a leaf: (rows, fan-in)}, in the order of the channels; a bias has fan-in 1.
    """
    flat, flat_gates = flatten(params), flatten(gates)
    packed = {}
    for layer in layout.layers:
        gate = flat_gates[layer.path].ravel()
        for leaf in layer.leaves:
            rows = to_rows(flat[leaf], layer.gate_shape)
            if capacity is None:
                packed[leaf] = rows[np.flatnonzero(gate)]
            else:
                index = jnp.nonzero(gate, size=capacity[layer.path], fill_value=layer.channels)[0]
                packed[leaf] = jnp.take(rows, index, axis=0, mode="fill", fill_value=0)
    return packed


def unpack(
    layout: Layout, packed: Mapping[str, jax.Array], parent: Tree, gates: Tree
) -> dict[str, jax.Array]:
    """Returns the layers' leaves: packed rows where a gate is open, the parent's channels elsewhere.

    The inverse of `pack`: ``unpack(layout, pack(layout, child, gates), parent, gates)`` equals
    ``mix(parent, child, gates)`` on every layer, bit by bit.
    """
    parents, flat_gates = flatten(parent), flatten(gates)
    leaves = {}
    for layer in layout.layers:
        gate = flat_gates[layer.path].ravel()
        for leaf, shape in zip(layer.leaves, layer.shapes, strict=True):
            rows = jnp.asarray(packed[leaf])
            index = jnp.nonzero(gate, size=rows.shape[0], fill_value=layer.channels)[0]
            filled = to_rows(jnp.asarray(parents[leaf]), layer.gate_shape).at[index].set(rows, mode="drop")
            leaves[leaf] = from_rows(filled, layer.gate_shape, shape)
    return unflatten(leaves)
