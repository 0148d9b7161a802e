"""The count of parameters (METHOD, "How parameters are counted"), and the task relation matrix."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from cwps_jax.core.channels import Layout
from cwps_jax.core.coding import Codes
from cwps_jax.core.trees import Tree, flatten

FLOAT32_BITS = 32


@dataclasses.dataclass(frozen=True)
class Count:
    """Parameters that one task keeps for itself.

    Attributes:
        active: weights and biases of its active channels, or the numbers that another method stores.
        private: norms and other private leaves.
        head: the head; not counted in the ratio.
        backbone: N, the pre-trained backbone without its head.
        bits: everything that is stored, head, statistics, masks and owners included; 0 if nothing is stored
            yet.
        head_bits: the bits of the head.
    """

    active: int
    private: int
    head: int
    backbone: int
    bits: int = 0
    head_bits: int = 0

    @property
    def ratio(self) -> float:
        """params_ratio: (active + private) / N."""
        return (self.active + self.private) / self.backbone

    @property
    def byte_ratio(self) -> float:
        """byte_ratio: stored bytes except the head's, over the bytes of the backbone in float32."""
        return (self.bits - self.head_bits) / (FLOAT32_BITS * self.backbone)


def count(layout: Layout, gates: Tree) -> Count:
    """Counts the parameters that a task with these hard gates of channels keeps."""
    flat = flatten(gates)
    active = sum(int(np.sum(flat[layer.path])) * layer.channel_parameters for layer in layout.layers)
    return Count(active, layout.private_parameters, layout.head_parameters, layout.backbone_parameters)


def count_stored(
    layout: Layout, own: Mapping[str, np.ndarray | Codes], rows: Mapping[str, np.ndarray | Codes]
) -> Count:
    """Counts the stored arrays of a task by any method.

    Args:
        layout: layout of the pre-trained backbone; leaves below "params" that it lacks are the head.
        own: {path: array, or its codes}. Floating-point numbers count, except for norm statistics, which are
            below "other".
        rows: {path: array, or its codes} of the stored channels.
    """
    known = layout.backbone_shapes
    head = private = active = bits = head_bits = 0
    for path, leaf in (*own.items(), *((f"rows/{path}", leaf) for path, leaf in rows.items())):
        bits += 8 * leaf.nbytes
        kind, _, name = path.partition("/")
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or kind == "other":
            continue
        if kind == "params" and name not in known:
            head += leaf.size
            head_bits += 8 * leaf.nbytes
        elif kind == "params" and name in layout.private_paths:
            private += leaf.size
        else:
            active += leaf.size
    return Count(active, private, head, layout.backbone_parameters, bits, head_bits)


def owned(layout: Layout, owners: Mapping[str, np.ndarray]) -> dict[int, int]:
    """Returns the number of parameters of a task's channels that each owner stores.

    Args:
        layout: the backbone's layout.
        owners: {path of a kernel: integer (channels,), the number of each channel's owner}.

    Returns:
        {owner: parameters}, ascending, without owners that store none.
    """
    found: dict[int, int] = {}
    for layer in layout.layers:
        for owner, channels in zip(*np.unique(owners[layer.path], return_counts=True), strict=True):
            found[int(owner)] = found.get(int(owner), 0) + int(channels) * layer.channel_parameters
    return dict(sorted(found.items()))


def relation(owned: Mapping[int, int], names: Mapping[int, str]) -> dict[str, float]:
    """Returns one row of the task relation matrix: the share of a task's channels that each one owns.

    Args:
        owned: see `owned`.
        names: {owner: its name}; several owners may be versions of one task.

    Returns:
        {name: share}, weighted by parameters; the shares sum to 1.
    """
    parameters: dict[str, int] = {}
    for owner, count in owned.items():
        parameters[names[owner]] = parameters.get(names[owner], 0) + count
    total = sum(parameters.values())
    return {name: count / total for name, count in parameters.items()}


def relation_matrix(rows: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> np.ndarray:
    """Returns the rows of `relation` as one matrix, (tasks, names), float64; its rows sum to 1."""
    matrix = [[row.get(name, 0.0) for name in names] for row in rows.values()]
    return np.array(matrix, np.float64).reshape(len(rows), len(names))
