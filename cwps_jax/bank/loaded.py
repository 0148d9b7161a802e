"""The places of a task's network, and of an owner's rows, on the device."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from cwps_jax.bank import kinds
from cwps_jax.bank.address import Capacity, Part
from cwps_jax.bank.stored import OwnLeaf, StoredOwn, StoredRows
from cwps_jax.bank.tables import Key
from cwps_jax.core.channels import Layer, Layout
from cwps_jax.store.index import Version
from cwps_jax.store.trees import Trees

NOT_LOADED = np.empty(0, np.int32)


@dataclasses.dataclass(eq=False)
class Loaded:
    """The place of a version's network on the device.

    Attributes:
        trees: the stored trees of the pool as it was when the task was added.
        version: the version.
        classes: the number of classes for which its head has room.
        owners: the identities of the versions whose rows it uses; None before the version is first read.
        capacity, address: see `bank.address`; both are empty while the version is not on the device.
        leaves: the leaves that the version has of its own beside its rows.
        table: the name of the table that holds the values of these leaves.
        slots: {key of that table: the slot of the version's values in it}.
    """

    trees: Trees
    version: Version
    classes: int
    owners: frozenset[int] | None = None
    capacity: Capacity = ()
    address: np.ndarray = dataclasses.field(default_factory=lambda: NOT_LOADED)
    leaves: tuple[OwnLeaf, ...] = ()
    table: str = ""
    slots: dict[Key, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(eq=False)
class Owner:
    """The places of an owner's rows on the device: `StoredRows` without the rows themselves."""

    rows: StoredRows
    slots: dict[Key, np.ndarray] = dataclasses.field(default_factory=dict)
    users: int = 0

    def slots_of(self, leaf: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the number of each row's kind, and its slot in that kind's table, both int32 (rows,)."""
        kind, place = self.rows.kind[leaf][rows], self.rows.place[leaf][rows]
        slot = np.zeros(len(rows), np.int32)
        for number in set(kind.tolist()) - {kinds.NUMBER[kinds.START]}:
            of_kind = kind == number
            slot[of_kind] = self.slots[leaf, kinds.KINDS[number]][place[of_kind]]
        return kind, slot


def own_counts(layout: Layout, own: StoredOwn) -> dict[str, int]:
    """Returns {path of a kernel: the number of channels that are not the pre-trained model's own}."""
    return {layer.path: len(_own_channels(*own.ownership[layer.path])) for layer in layout.layers}


def parts_of_task(layout: Layout, own: StoredOwn, owners: Mapping[int, Owner]) -> dict[str, Part]:
    """Returns {path of a kernel: its channels that are not the pre-trained model's own, and their places}.

    Args:
        layout: the backbone's layout.
        own: the task's own leaves, and the owners of its channels.
        owners: the owners whose rows are on the device.
    """
    return {layer.path: _part(layer, *own.ownership[layer.path], owners) for layer in layout.layers}


def _part(layer: Layer, owner: np.ndarray, row: np.ndarray, owners: Mapping[int, Owner]) -> Part:
    channels = _own_channels(owner, row)
    owner, row = owner[channels], row[channels]
    start = row.astype(np.int32)  # for channels of the pre-trained model; others follow below
    kind = {leaf: np.zeros(len(row), np.int32) for leaf in layer.leaves}
    slot = {leaf: np.zeros(len(row), np.int32) for leaf in layer.leaves}
    for identity in np.unique(owner[owner != 0]):
        held, mine = owners[int(identity)], owner == identity
        start[mine] = held.rows.channels[layer.path][row[mine]]
        for leaf in layer.leaves:
            kind[leaf][mine], slot[leaf][mine] = held.slots_of(leaf, row[mine])
    return Part(layer, channels, start, None, kind, slot)


def _own_channels(owner: np.ndarray, row: np.ndarray) -> np.ndarray:
    return np.flatnonzero((owner != 0) | (row != np.arange(len(row))))
