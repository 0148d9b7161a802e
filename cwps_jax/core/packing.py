"""Packs active channels to rows, channel-major, the form in which a task's layers are stored."""

import numpy as np

from cwps_jax.core.channels import Layout, to_columns
from cwps_jax.core.trees import Tree, flatten


def pack(layout: Layout, params: Tree, gates: Tree) -> dict[str, np.ndarray]:
    """Returns the active channels' rows of every layer's leaves.

    Args:
        layout: the backbone's layout.
        params: nested dict of parameters, on the host.
        gates: nested dict of hard gates, on the host.

    Returns:
        {path of a leaf: (rows, fan-in)}, in the order of the channels; a bias has fan-in 1.
    """
    flat, flat_gates = flatten(params), flatten(gates)
    return {
        leaf: to_columns(flat[leaf], layer.gate_shape).T[np.flatnonzero(flat_gates[layer.path])]
        for layer in layout.layers
        for leaf in layer.leaves
    }
