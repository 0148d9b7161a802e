"""What is on the device: tables of rows, trees of tasks that are asked often, and a working copy.

A byte limit holds for all of it: what was used longest ago goes first, trees before rows. With a limit,
rows that were read stay on the host too, under a limit of its own, and what is on neither is on disk.
"""

import collections
import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from cwps_jax.bank import address
from cwps_jax.bank.address import Capacity
from cwps_jax.bank.loaded import NOT_LOADED, Loaded, Owner, parts_of_task
from cwps_jax.bank.stored import OwnLeaf, StoredOwn, StoredRows, stored_own, stored_rows
from cwps_jax.bank.tables import Key, Tables
from cwps_jax.core.compact import choose_capacity
from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.errors import CwpsError
from cwps_jax.store.trees import Trees

OWN = "own"  # the kind of what is a task's own beside rows
NOWHERE = np.iinfo(np.int32).max  # a slot that no table has: nothing is written there


class Resident:
    """See above. Whoever calls it holds the bank's lock.

    Args:
        trees: the pool's.
        device_bytes, host_bytes: limits; 0 for none.

    Attributes:
        start: {path: leaf}, the pre-trained model's variables without its head.
        tables: the rows.
        kept: {who: tree}, trees of tasks that are asked often, the one asked last at the end.
        working: the working copy, and whose it is now.
    """

    def __init__(self, trees: Trees, device_bytes: int, host_bytes: int) -> None:
        self.layout = trees.index.layout
        head = {f"params/{path}" for path in self.layout.head_paths}
        self.start = jax.device_put(
            {path: leaf for path, leaf in flatten(trees.shared()).items() if path not in head}
        )
        self.tables = Tables()
        self.kept: collections.OrderedDict[Any, Any] = collections.OrderedDict()
        self.working: tuple[Any, Any] | None = None
        self.limits = device_bytes, host_bytes
        self.loaded: collections.OrderedDict[Loaded, None] = collections.OrderedDict()
        self._owners: dict[int, Owner] = {}
        self._host: collections.OrderedDict[int, StoredRows] = collections.OrderedDict()
        self._own_tables: dict[tuple[OwnLeaf, ...], str] = {}
        self._known: list[Mapping[str, int]] = []  # capacities of programs
        self._fan_in = {layer.path: float(layer.channel_parameters) for layer in self.layout.layers}
        if device_bytes and self.device_bytes > device_bytes:
            raise CwpsError(
                f"device_bytes={device_bytes}: the pre-trained model alone has {self.device_bytes}; give more"
            )

    @property
    def device_bytes(self) -> int:
        """What is on the device."""
        trees = (self.start, self.kept, self.working and self.working[1])
        return self.tables.nbytes + sum(leaf.nbytes for leaf in jax.tree.leaves(trees))

    @property
    def host_bytes(self) -> int:
        """What is on the host, where rows stay that were on the device."""
        return sum(rows.nbytes for rows in self._host.values())

    def is_near(self, identity: int) -> bool:
        """Returns whether an owner's rows are on the device or the host."""
        return identity in self._owners or identity in self._host

    def load(self, tasks: Iterable[Loaded]) -> None:
        """Puts tasks on the device, all at once.

        Raises:
            CwpsError: they do not fit, or a stored tree is damaged.
        """
        wanted = list(dict.fromkeys(tasks))
        for task in wanted:
            if task in self.loaded:
                self.loaded.move_to_end(task)
        new = [task for task in wanted if task not in self.loaded]
        if not new:
            return
        own = {task: self.note(task) for task in new}
        trees = {identity: task.trees for task in new for identity in own[task].owners}
        rows = {
            identity: self._read(trees[identity], identity)
            for identity in sorted(trees)
            if identity not in self._owners
        }
        counts: collections.Counter[Key] = collections.Counter()
        shapes: dict[Key, Any] = {}
        for one in rows.values():
            for leaf, of_leaf in one.parts.items():
                for kind, parts in of_leaf.items():
                    count = len(next(iter(parts.values())))
                    if count:
                        counts[leaf, kind] += count
                        shapes[leaf, kind] = parts
        for task in new:
            counts[task.table, OWN] += 1
            shapes[task.table, OWN] = _of_one(own[task])
        beside = lambda: self.device_bytes - self.tables.nbytes
        self.make_room(lambda: beside() + self.tables.grown_bytes(counts, shapes), wanted)
        self.tables.reserve(counts, shapes)
        for identity, one in rows.items():
            self._write(identity, one)
        for task in new:
            self._place(task, own[task])

    def note(self, task: Loaded) -> StoredOwn:
        """Reads what a task is made of, notes it, and returns what is its own beside rows."""
        own = stored_own(task.trees, task.version, task.classes)
        task.owners, task.leaves = own.owners, own.leaves
        task.table = self._own_tables.setdefault(task.leaves, f"{OWN}{len(self._own_tables)}")
        return own

    def unload(self, task: Loaded) -> None:
        """Takes a task off the device; rows that nobody else needs go too."""
        if task not in self.loaded:
            return
        del self.loaded[task]
        task.address = NOT_LOADED
        self.tables.give_back((task.table, OWN), np.array([task.slot], np.int32))
        for identity in task.owners or ():
            owner = self._owners[identity]
            owner.users -= 1
            if not owner.users:
                del self._owners[identity]
                for key, slots in owner.slots.items():
                    self.tables.give_back(key, slots)

    def forget(self, tasks: Collection[Loaded]) -> None:
        """Frees the memory that tables have too much of, and host copies that no task needs.

        Args:
            tasks: all that may be asked for again.
        """
        needed = {identity for task in tasks for identity in task.owners or ()}
        for identity in [one for one in self._host if one not in needed]:
            del self._host[identity]
        self._shrink(least=False)

    def make_room(self, needed: Callable[[], int], staying: Collection[Loaded] = ()) -> None:
        """Takes off the device what was used longest ago, until what is needed fits.

        Args:
            needed: gives the bytes that would be on the device.
            staying: tasks that stay.

        Raises:
            CwpsError: it does not fit.
        """
        limit = self.limits[0]
        while limit and needed() > limit:
            idle = [task for task in self.loaded if task not in staying]
            if self.kept:
                self.kept.popitem(last=False)
            elif idle:
                self.unload(idle[0])
            elif self.working:
                self.working = None
            elif not self._shrink(least=True):
                raise CwpsError(
                    f"device_bytes={limit}: {needed()} are needed at once; give more, or ask fewer "
                    "tasks at once"
                )

    def arguments(self, task: Loaded) -> tuple[Any, ...]:
        """Returns what the programs read of a task beside its address: see `programs.merged`."""
        rows = {
            leaf: self.tables.arrays[leaf] for leaf in self.layout.layer_paths if leaf in self.tables.arrays
        }
        return self.start, rows, self.tables.arrays[task.table][OWN]

    def _read(self, trees: Trees, identity: int) -> StoredRows:
        if identity in self._host:
            self._host.move_to_end(identity)
            return self._host[identity]
        rows = stored_rows(trees, identity)
        device_bytes, host_bytes = self.limits
        if device_bytes:  # else they never come back from the device
            self._host[identity] = rows = dataclasses.replace(rows, parts=jax.tree.map(np.array, rows.parts))
            while host_bytes and self._host and self.host_bytes > host_bytes:
                self._host.popitem(last=False)
        return rows

    def _write(self, identity: int, rows: StoredRows) -> None:
        """Writes an owner's rows to the tables, padded, so that owners share the program that does it."""
        gates = {path: np.ones(len(channels)) for path, channels in rows.channels.items()}
        capacity = dict(zip(rows.channels, self._capacity(gates), strict=True))
        padded: dict[str, dict[str, Any]] = {}
        places: dict[str, dict[str, np.ndarray]] = {}
        owner = Owner(dataclasses.replace(rows, parts={}), {})
        for layer in self.layout.layers:
            for leaf in layer.leaves:
                for kind, table in self.tables.arrays.get(leaf, {}).items():
                    parts = rows.parts[leaf].get(kind, {})
                    count = len(next(iter(parts.values()))) if parts else 0
                    slots = self.tables.take((leaf, kind), count)
                    if count:
                        owner.slots[leaf, kind] = slots
                    room = capacity[layer.path]
                    where = np.full(room, NOWHERE, np.int32)
                    where[:count] = slots
                    places.setdefault(leaf, {})[kind] = where
                    into = {name: np.zeros((room, *one.shape[1:]), one.dtype) for name, one in table.items()}
                    for name, part in parts.items():
                        into[name][:count] = part
                    padded.setdefault(leaf, {})[kind] = into
        self._owners[identity] = owner
        self.tables.write(padded, places)

    def _place(self, task: Loaded, own: StoredOwn) -> None:
        (slot,) = self.tables.take((task.table, OWN), 1)
        task.slot = int(slot)
        self.tables.write({task.table: {OWN: _of_one(own)}}, {task.table: {OWN: np.array([slot])}})
        for identity in own.owners:
            self._owners[identity].users += 1
        self.loaded[task] = None
        self._address(task, own)

    def _address(self, task: Loaded, own: StoredOwn) -> None:
        """Writes where the rows of a task lie."""
        parts = parts_of_task(self.layout, own, self._owners)
        task.capacity = self._capacity({path: np.ones(len(part.channels)) for path, part in parts.items()})
        task.address = address.written(self.layout, task.capacity, parts, task.slot)

    def _capacity(self, gates: Mapping[str, np.ndarray]) -> Capacity:
        found = choose_capacity(self.layout, unflatten(gates), self._known, self._fan_in)
        if found not in self._known:
            self._known.append(found)
        return tuple(found[layer.path] for layer in self.layout.layers)

    def _shrink(self, *, least: bool) -> bool:
        """Makes tables smaller that have much room; returns whether any was."""
        moved = self.tables.shrink(least=least)
        for owner in self._owners.values():
            owner.slots = {
                key: moved[key][slots] if key in moved else slots for key, slots in owner.slots.items()
            }
        for task in self.loaded if moved else ():
            if (task.table, OWN) in moved:
                task.slot = int(moved[task.table, OWN][task.slot])
            self._address(task, stored_own(task.trees, task.version, task.classes))
        return bool(moved)


def _of_one(own: StoredOwn) -> dict[str, np.ndarray]:
    return {dtype: values[None] for dtype, values in own.vectors.items()}
