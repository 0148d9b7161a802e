"""The compact form of a child: only the open channels of every layer, side by side, padded to a capacity.

A packed leaf has the leaf's path and the shape (fan-in, capacity): the layer's channels stay the minor axis,
as in most kernels, so packing needs no transposition. Columns beyond the open channels are zeros.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cwps_jax.core.channels import Layer, Layout, from_columns, gates_by_leaf, to_columns
from cwps_jax.core.trees import Tree, flatten, unflatten
from cwps_jax.errors import CwpsError

SHARES = 32  # capacities are whole shares of a layer,
MULTIPLE = 8  # and at least this many channels apart: narrower products do not fill matrix units
HEADROOM = 1 / 8  # share of a layer that a capacity for several tasks has room for beyond the first of them
SLACK = 1 / 4  # share of all channels' weight-gradient work that padding may take before a step is compiled

Capacity = Mapping[str, int]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Placement:
    """The places of the channels of a packed leaf.

    Attributes:
        channels: int32 (capacity,), each column's channel; the number of channels for a column of padding.
        columns: int32 (channels,), each open channel's column; 0 for a closed one.
    """

    channels: Any
    columns: Any


def placements(layout: Layout, gates: Tree, capacity: Capacity) -> dict[str, Placement]:
    """Returns {path of a leaf: its `Placement`} for every leaf of every layer.

    Args:
        layout: the backbone's layout.
        gates: nested dict of hard gates, concrete.
        capacity: {path of a kernel: number of columns}.

    Raises:
        CwpsError: a capacity below the number of open channels.
    """
    found = {}
    for path, gate in flatten(gates).items():
        is_open = np.ravel(np.asarray(gate))
        channels = np.full(capacity[path], is_open.size, np.int32)
        active = np.flatnonzero(is_open)
        if len(active) > len(channels):
            raise CwpsError(f"{path}: a capacity of {len(channels)} cannot hold {len(active)} open channels")
        channels[: len(active)] = active
        columns = np.zeros(is_open.size, np.int32)
        columns[active] = np.arange(len(active))
        found[path] = Placement(channels, columns)
    return {leaf: found[layer.path] for layer in layout.layers for leaf in layer.leaves}


def capacity_of(layout: Layout, placed: Mapping[str, Placement]) -> dict[str, int]:
    """Returns the capacity for which `placements` were made."""
    return {layer.path: len(placed[layer.path].channels) for layer in layout.layers}


def pack(tree: Tree, gates: Tree, placed: Mapping[str, Placement]) -> dict[str, Any]:
    """Returns a tree of the child's structure with every layer's leaf packed; other leaves as they are.

    Args:
        tree: nested dict of NumPy arrays in the child's shapes: parameters, or an optimizer's moments.
        gates: nested dict of hard gates.
        placed: see `placements`.
    """
    flat = flatten(tree)
    for path, gate in gates_by_leaf(gates, tree).items():
        columns = to_columns(np.asarray(flat[path]), gate.shape)
        channels = placed[path].channels
        active = channels[channels < columns.shape[1]]
        flat[path] = np.zeros((len(columns), len(channels)), columns.dtype)
        flat[path][:, : len(active)] = columns[:, active]
    return unflatten(flat)


def unpack(packed: Tree, parent: Tree, gates: Tree, placed: Mapping[str, Placement]) -> dict[str, Any]:
    """Returns the plain backbone's parameters: packed channels where a gate is open, else the parent's.

    Equal to ``mix(parent, child, gates)`` to the bit, for ``packed = pack(child, gates, placed)``. The
    gradient of a packed leaf is that of its channels, and zero in the padding.

    Args:
        packed: nested dict, see `pack`.
        parent: nested dict with the leaves of every layer. No gradient flows into it.
        gates: nested dict of hard gates.
        placed: see `placements`.

    Raises:
        CwpsError: the shape of a leaf does not fit its placement.
    """
    parents, flat = flatten(parent), flatten(packed)
    for path, gate in gates_by_leaf(gates, parent).items():
        leaf = flat[path]
        if path not in placed or leaf.shape != (_fan_in(gate, parents[path]), len(placed[path].channels)):
            raise CwpsError(
                f"{path}: shape {leaf.shape} is not the packed form of its layer; see compact.pack"
            )
        theirs = jax.lax.stop_gradient(parents[path]).astype(leaf.dtype)
        flat[path] = merge(leaf, theirs, gate, placed[path]) if leaf.shape[1] else theirs
    return unflatten(flat)


def _fan_in(gate: jax.Array, leaf: jax.Array) -> int:
    return leaf.size // gate.size


@jax.custom_vjp
def merge(packed: jax.Array, parent: jax.Array, gate: jax.Array, placement: Placement) -> jax.Array:
    """Returns one leaf of `unpack`: open channels from the packed leaf, the others from the parent's."""
    # A gather by each channel's column, which fuses with the choice, where a scatter is a pass of its own;
    # on matrices, since a compiler's loop over a kernel's own axes divides for every element.
    columns = jnp.take(packed, placement.columns, axis=1, mode="clip")
    merged = jnp.where(gate.reshape(1, -1), columns, to_columns(parent, gate.shape))
    return from_columns(merged, gate.shape, parent.shape)


def _scatter_forward(packed, parent, gate, placement):
    return merge(packed, parent, gate, placement), (gate, placement)


def _scatter_backward(residuals, gradient):
    gate, placement = residuals
    columns = to_columns(gradient, gate.shape)
    return jnp.take(columns, placement.channels, axis=1, mode="fill", fill_value=0), None, None, None


merge.defvjp(_scatter_forward, _scatter_backward)


def choose_capacity(
    layout: Layout, gates: Tree, known: Sequence[Capacity], work: Mapping[str, float]
) -> dict[str, int]:
    """Returns {path of a kernel: capacity} for the open channels, a compiled one if possible.

    The first choice is the cheapest known capacity that covers every layer. The second is the largest union
    of a known one with the needed one and some headroom, so that later tasks fit too. A new capacity is made
    if none is known yet, or if the known ones take more work by over `SLACK` of all channels' work.

    Args:
        layout: the backbone's layout.
        gates: nested dict of hard gates, concrete.
        known: the capacities of compiled steps.
        work: {path of a kernel: work of one channel's weight gradient}; missing layers take no work.

    Examples:
        >>> import numpy as np
        >>> layer = Layer("kernel", ("kernel",), ((9, 64),), (1, 64))
        >>> gates = {"kernel": np.arange(64)[None] < 10}
        >>> choose_capacity(Layout((layer,), (), ()), gates, [], {"kernel": 9.0})
        {'kernel': 16}
        >>> choose_capacity(Layout((layer,), (), ()), gates, [{"kernel": 24}], {"kernel": 9.0})
        {'kernel': 24}
        >>> choose_capacity(Layout((layer,), (), ()), gates, [{"kernel": 64}], {"kernel": 9.0})
        {'kernel': 16}
    """

    def total(capacity: Capacity) -> float:
        return sum(work.get(path, 0.0) * columns for path, columns in capacity.items())

    opened = {path: int(np.sum(gate)) for path, gate in flatten(gates).items()}
    own = {layer.path: _rounded(opened[layer.path], layer) for layer in layout.layers}
    wide = {
        layer.path: _rounded(opened[layer.path] + int(HEADROOM * layer.channels), layer)
        for layer in layout.layers
    }
    most = total(own) + SLACK * total({layer.path: layer.channels for layer in layout.layers})
    unions = [{path: max(columns, one[path]) for path, columns in wide.items()} for one in known]
    covering = [dict(one) for one in known if all(one[path] >= opened[path] for path in opened)]
    covering, unions = ([one for one in some if total(one) <= most] for some in (covering, unions))
    if covering:
        return min(covering, key=total)
    return max(unions, key=total, default=own)


def _rounded(active: int, layer: Layer) -> int:
    step = max(MULTIPLE, -(-layer.channels // SHARES))
    return min(layer.channels, -(-active // step) * step)
