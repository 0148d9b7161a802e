"""How parameters are counted (METHOD, "How parameters are counted"), and the task relation matrix."""

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
        active: weights and biases of its active channels, or whatever else its method stores in numbers.
        private: norms and other private leaves.
        head: the head; not counted in the ratio.
        backbone: N, the pre-trained backbone without its head.
        bits: all that is stored, head, statistics, masks and owners included; 0 where nothing is stored yet.
        head_bits: those of the head alone.
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
        """byte_ratio: all that is stored but the head, over the bytes of the backbone in float32."""
        return (self.bits - self.head_bits) / (FLOAT32_BITS * self.backbone)


def count(layout: Layout, gates: Tree) -> Count:
    """Counts what a task with these hard gates of channels keeps."""
    flat = flatten(gates)
    active = sum(int(np.sum(flat[layer.path])) * layer.channel_parameters for layer in layout.layers)
    return Count(active, layout.private_parameters, layout.head_parameters, layout.backbone_parameters)


def count_stored(
    layout: Layout, own: Mapping[str, np.ndarray | Codes], rows: Mapping[str, np.ndarray | Codes]
) -> Count:
    """Counts what is stored of a task by whatever method, from the arrays themselves.

    Args:
        layout: the pre-trained backbone's; leaves below "params" that it does not know are the head.
        own: {path: array, or its codes}; numbers with a fraction count, but for norm statistics, below
            "other".
        rows: the same of the stored channels.
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
    """Returns how many parameters of a task's channels each owner stores.

    Args:
        layout: the backbone's layout.
        owners: {path of a kernel: integer (channels,), the number of each channel's owner}.

    Returns:
        {owner: parameters}, ascending; owners of nothing are left out.
    """
    found: dict[int, int] = {}
    for layer in layout.layers:
        for owner, channels in zip(*np.unique(owners[layer.path], return_counts=True), strict=True):
            found[int(owner)] = found.get(int(owner), 0) + int(channels) * layer.channel_parameters
    return dict(sorted(found.items()))


def relation(owned: Mapping[int, int], names: Mapping[int, str]) -> dict[str, float]:
    """Returns one row of the task relation matrix: the share of a task's channels that each one owns.

    Args:
        owned: as `owned` gives it.
        names: {owner: its name}; several owners may be versions of one.

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
