"""The parts of a stored version that go to the device: its rows, and its other own values as vectors."""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from cwps_jax.bank import kinds
from cwps_jax.core.channels import Layout
from cwps_jax.core.coding import Codes
from cwps_jax.methods.channels import Ownership, opened, ownership
from cwps_jax.store.coded import DecodedRows
from cwps_jax.store.index import Version
from cwps_jax.store.trees import Trees

OF_CHANNELS = ("masks", "owner", "row", "params", "other")  # parts of an own tree with shared channels


class OwnLeaf(NamedTuple):
    """A leaf that a version has of its own, and its place in the version's vectors.

    Attributes:
        path: the path in the model's variables, such as "params/norm/scale" or "batch_stats/norm/mean".
        bits: the bits of a coded value; 0 for values without coding.
        shape: the leaf's shape; a head has room for the bank's largest number of classes.
        dtype: the dtype of its vector.
        first: the index of the leaf's first value in the vector.
    """

    path: str
    bits: int
    shape: tuple[int, ...]
    dtype: str
    first: int


@dataclasses.dataclass(frozen=True, eq=False)
class StoredRows:
    """The rows of one owner, on the host.

    Attributes:
        parts: {path of a leaf: {kind: its parts}}, see `kinds.by_kind`.
        kind, place: {path of a leaf: int32 (rows,)}, each row's kind and its place among rows of that kind.
        channels: {path of a kernel: int (rows,)}, the channel of each row.
    """

    parts: Mapping[str, Mapping[str, kinds.Parts]]
    kind: Mapping[str, np.ndarray]
    place: Mapping[str, np.ndarray]
    channels: Mapping[str, np.ndarray]

    @property
    def nbytes(self) -> int:
        return sum(kinds.parts_bytes(parts) for leaf in self.parts.values() for parts in leaf.values())


@dataclasses.dataclass(frozen=True, eq=False)
class StoredOwn:
    """All values that a version has of its own beside its rows, on the host.

    Attributes:
        leaves: the place of each leaf; equal for versions that are stored in the same form.
        vectors: {dtype: its values}, and "steps", float32, one step size for each coded leaf.
        ownership: {path of a kernel: (owner of each channel, its row there)}.
    """

    leaves: tuple[OwnLeaf, ...]
    vectors: Mapping[str, np.ndarray]
    ownership: Ownership

    @property
    def nbytes(self) -> int:
        return kinds.parts_bytes(self.vectors)

    @property
    def owners(self) -> frozenset[int]:
        """The identities of the versions whose rows it uses, which may include its own."""
        named = {int(one) for owner, _ in self.ownership.values() for one in np.unique(owner)}
        return frozenset(named - {0})


def is_of_channels(trees: Trees, version: Version) -> bool:
    """Returns whether a version is a network of shared channels and nothing else."""
    if not version.rows_sha256:
        return False
    return all(path.partition("/")[0] in OF_CHANNELS for path in trees.own(version).leaves)


def stored_rows(trees: Trees, identity: int) -> StoredRows:
    """Reads an owner's rows."""
    layout, version = trees.index.layout, trees.index.by_id[identity]
    own, rows = trees.own(version), trees.rows(identity)
    parts, kind, place = {}, {}, {}
    for leaf in layout.layer_paths:
        stored = rows[leaf]
        codes = stored.codes if isinstance(stored, DecodedRows) else stored
        parts[leaf], kind[leaf], place[leaf] = kinds.by_kind(codes)
    channels = {layer.path: opened(layer, own) for layer in layout.layers}
    return StoredRows(parts, kind, place, channels)


def stored_own(trees: Trees, version: Version, classes: int) -> StoredOwn:
    """Reads all own values beside the rows, of a version for which `is_of_channels` is true.

    Args:
        trees: the pool's stored trees.
        version: the version.
        classes: the number of classes to which its head is widened.
    """
    layout, own = trees.index.layout, trees.own(version)
    leaves: list[OwnLeaf] = []
    steps: list[np.ndarray] = []
    vectors: dict[str, list[np.ndarray]] = {}
    ends: collections.Counter[str] = collections.Counter()
    for path in sorted(own.leaves):
        kind, _, name = path.partition("/")
        if kind not in ("params", "other"):
            continue
        leaf, bits = own.leaves[path], 0
        is_head = kind == "params" and name in layout.head_paths
        if isinstance(leaf, Codes) and leaf.bits in (8, 16) and len(leaf.steps) == 1 and not is_head:
            bits, values, shape = leaf.bits, np.asarray(leaf.codes), leaf.shape
            steps.append(np.asarray(leaf.steps, np.float32))
        else:
            values = own[path]
            if is_head:
                values = widened(values, classes)
            shape = values.shape
        dtype, where = values.dtype.name, name if kind == "other" else path
        leaves.append(OwnLeaf(where, bits, shape, dtype, ends[dtype]))
        vectors.setdefault(dtype, []).append(values.ravel())
        ends[dtype] += values.size
    joined = {dtype: np.concatenate(values) for dtype, values in vectors.items()}
    joined["steps"] = np.concatenate([np.empty(0, np.float32), *steps])
    return StoredOwn(tuple(leaves), joined, ownership(layout, own, version.id))


def classes_of(layout: Layout, own: Mapping[str, Any]) -> int:
    """Returns how many outputs a task's head has: the length of its leaves' last axis.

    Args:
        layout: the backbone's layout.
        own: {path: leaf}, the task's own tree.
    """
    heads = [own[f"params/{path}"] for path in layout.head_paths if f"params/{path}" in own]
    return max((leaf.shape[-1] for leaf in heads), default=1)


def widened(leaf: np.ndarray, classes: int) -> np.ndarray:
    """Returns a head's leaf with zeros for further classes, which are on its last axis."""
    room = [(0, 0)] * (leaf.ndim - 1) + [(0, classes - leaf.shape[-1])]
    return np.pad(leaf, room)
