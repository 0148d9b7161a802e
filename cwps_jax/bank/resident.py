"""The contents of the device: tables of rows, trees of tasks that are often asked for, and a working copy.

One byte limit holds for all of them: the least recently used are removed first, trees before rows. If there
is a limit, rows that were read also stay on the host, under a limit of its own; all others are on the disk.
"""

import collections
import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from cwps_jax.bank import address, kinds
from cwps_jax.bank.capacities import Capacities
from cwps_jax.bank.loaded import NOT_LOADED, Loaded, Owner, own_counts, parts_of_task
from cwps_jax.bank.stored import OwnLeaf, StoredOwn, StoredRows, stored_own, stored_rows
from cwps_jax.bank.tables import Key, Tables, count_of
from cwps_jax.core.trees import flatten
from cwps_jax.errors import CwpsError
from cwps_jax.store.trees import Trees

Arriving = dict[Key, list[tuple[int | Loaded, kinds.Parts]]]
OWN = "own"  # the kind of the values that a task has of its own beside its rows
NOWHERE = np.iinfo(np.int32).max  # a slot that no table has, so that nothing is written


class NoRoom(CwpsError):
    """A request needs more bytes at once than the device's limit."""


class Resident:
    """The contents of the device and the host. A caller must hold the bank's lock.

    Args:
        trees: the pool's stored trees.
        device_bytes, host_bytes: limits; 0 for none.

    Attributes:
        start: {path: leaf}, the pre-trained model's variables without its head.
        tables: the rows.
        kept: {task: tree}, trees of tasks that are often asked for, the most recently used one last.
        working: (task, tree), the task that is in the working copy now, and the copy; or None.
        capacities: those of the tasks.
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
        self.capacities = Capacities(self.layout)
        self.loaded: collections.OrderedDict[Loaded, None] = collections.OrderedDict()
        self._owners: dict[int, Owner] = {}
        self._host: collections.OrderedDict[int, StoredRows] = collections.OrderedDict()
        self._own_tables: dict[tuple[OwnLeaf, ...], tuple[str, tuple[OwnLeaf, ...]]] = {}
        if device_bytes and self.device_bytes > device_bytes:
            raise CwpsError(
                f"device_bytes={device_bytes}: the pre-trained model alone has {self.device_bytes}; give more"
            )

    @property
    def device_bytes(self) -> int:
        """The bytes on the device."""
        trees = (self.start, self.kept, self.working and self.working[1])
        return self.tables.nbytes + sum(leaf.nbytes for leaf in jax.tree.leaves(trees))

    @property
    def host_bytes(self) -> int:
        """The bytes on the host, where rows stay that were on the device."""
        return sum(rows.nbytes for rows in self._host.values())

    def is_near(self, identity: int) -> bool:
        """Returns whether an owner's rows are on the device or the host."""
        return identity in self._owners or identity in self._host

    def load(self, tasks: Iterable[Loaded]) -> None:
        """Puts tasks on the device, all at once.

        Raises:
            NoRoom: the tasks do not fit.
            CwpsError: a stored tree is damaged.
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
        coming: dict[int, StoredRows] = {}
        while True:
            missing = sorted(trees.keys() - self._owners.keys() - coming.keys())
            coming |= {identity: self._read(trees[identity], identity) for identity in missing}
            arriving = _arriving(coming, own)
            counts = self._make_room_for(arriving, wanted)
            if trees.keys() <= self._owners.keys() | coming.keys():
                break  # Otherwise a task that was unloaded to make room took an owner with it that is needed.
        self._owners |= {
            identity: Owner(dataclasses.replace(one, parts={})) for identity, one in coming.items()
        }
        if self.tables.arrays:
            self.tables.reserve(counts, {key: some[0][1] for key, some in arriving.items()})
            for identity, one in coming.items():
                self._write(self._owners[identity], one)
            for task in new:
                self._write_own(task, own[task])
        else:
            self._fill(arriving)
        capacities = self.capacities.of_all(own_counts(self.layout, own[task]) for task in new)
        for task, task.capacity in zip(new, capacities, strict=True):
            self._place(task, own[task])
            task.trees.forget([task.version.id, *own[task].owners])

    def note(self, task: Loaded) -> StoredOwn:
        """Reads and returns a task's own values beside its rows; notes its owners and leaves."""
        own = stored_own(task.trees, task.version, task.classes)
        task.owners = own.owners
        first = f"{OWN}{len(self._own_tables)}", own.leaves
        task.table, task.leaves = self._own_tables.setdefault(own.leaves, first)  # equal leaves, one tuple
        return own

    def unload(self, task: Loaded) -> None:
        """Takes a task off the device, with those rows that no other task needs."""
        if task not in self.loaded:
            return
        del self.loaded[task]
        task.address = NOT_LOADED
        self._give_back(task)
        for identity in task.owners or ():
            owner = self._owners[identity]
            owner.users -= 1
            if not owner.users:
                self._give_back(self._owners.pop(identity))

    def forget(self, tasks: Collection[Loaded]) -> None:
        """Frees unused memory of tables, and copies on the host that no task needs.

        Args:
            tasks: all tasks that may be asked for again.
        """
        needed = {identity for task in tasks for identity in task.owners or ()}
        for identity in [one for one in self._host if one not in needed]:
            del self._host[identity]
        self._shrink(least=False)

    def make_room(self, needed: Callable[[], int], staying: Collection[Loaded] = ()) -> None:
        """Removes the least recently used trees and rows from the device, until the needed bytes fit.

        Args:
            needed: returns the bytes that would be on the device.
            staying: tasks that must stay.

        Raises:
            NoRoom: the bytes do not fit.
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
                raise NoRoom(
                    f"device_bytes={limit}: {needed()} are needed at once; give more, or ask fewer "
                    "tasks at once"
                )

    def arguments(self, task: Loaded) -> tuple[Any, ...]:
        """Returns the arguments of a task's programs beside its address: `start`, `tables` and `own`."""
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
        if device_bytes:  # Without a limit they never leave the device, and no copy is needed.
            self._host[identity] = rows = dataclasses.replace(rows, parts=jax.tree.map(np.array, rows.parts))
            while host_bytes and self._host and self.host_bytes > host_bytes:
                self._host.popitem(last=False)
        return rows

    def _make_room_for(self, arriving: Arriving, staying: Collection[Loaded]) -> dict[Key, int]:
        """Makes room for rows, and returns how many of them each table receives."""
        counts = {key: sum(count_of(parts) for _, parts in some) for key, some in arriving.items()}
        shapes = {key: some[0][1] for key, some in arriving.items()}
        beside = lambda: self.device_bytes - self.tables.nbytes
        self.make_room(lambda: beside() + self.tables.grown_bytes(counts, shapes), staying)
        return counts

    def _fill(self, arriving: Arriving) -> None:
        """Makes the first tables, each in one step: nothing is compiled, however many tasks there are."""
        for key, some in arriving.items():
            together = {name: np.concatenate([parts[name] for _, parts in some]) for name in some[0][1]}
            ends = np.cumsum([count_of(parts) for _, parts in some])
            slots = np.split(self.tables.fill(key, together), ends[:-1])
            for (whose, _), taken in zip(some, slots, strict=True):
                holder = whose if isinstance(whose, Loaded) else self._owners[whose]
                holder.slots[key] = taken

    def _write(self, owner: Owner, rows: StoredRows) -> None:
        """Writes an owner's rows to the tables, padded so that owners share the program that writes them."""
        counts = {path: len(channels) for path, channels in rows.channels.items()}
        padded: dict[str, dict[str, Any]] = {}
        places: dict[str, dict[str, np.ndarray]] = {}
        for layer, room in zip(self.layout.layers, self.capacities.of(counts), strict=True):
            for leaf in layer.leaves:
                for kind, table in self.tables.arrays.get(leaf, {}).items():
                    parts = rows.parts[leaf].get(kind, {})
                    count = count_of(parts) if parts else 0
                    where = np.full(room, NOWHERE, np.int32)
                    if count:
                        owner.slots[leaf, kind] = where[:count] = self.tables.take((leaf, kind), count)
                    places.setdefault(leaf, {})[kind] = where
                    into = {name: np.zeros((room, *one.shape[1:]), one.dtype) for name, one in table.items()}
                    for name, part in parts.items():
                        into[name][:count] = part
                    padded.setdefault(leaf, {})[kind] = into
        self.tables.write(padded, places)

    def _write_own(self, task: Loaded, own: StoredOwn) -> None:
        task.slots[task.table, OWN] = slots = self.tables.take((task.table, OWN), 1)
        self.tables.write({task.table: {OWN: _of_one(own)}}, {task.table: {OWN: slots}})

    def _place(self, task: Loaded, own: StoredOwn) -> None:
        """Writes the address of a task, whose rows are on the device."""
        for identity in own.owners:
            self._owners[identity].users += 1
        self.loaded[task] = None
        parts = parts_of_task(self.layout, own, self._owners)
        (slot,) = task.slots[task.table, OWN]
        task.address = address.written(self.layout, task.capacity, parts, int(slot))

    def _give_back(self, holder: Owner | Loaded) -> None:
        for key, slots in holder.slots.items():
            self.tables.give_back(key, slots)
        holder.slots = {}

    def _shrink(self, *, least: bool) -> bool:
        """Makes tables smaller that have many free slots; returns whether any table was made smaller."""
        moved = self.tables.shrink(least=least)
        holders: list[Owner | Loaded] = [*self._owners.values(), *self.loaded]
        for holder in holders:
            holder.slots = {
                key: moved[key][slots] if key in moved else slots for key, slots in holder.slots.items()
            }
        for task in self.loaded if moved else ():
            task.address = address.moved(self.layout, task.capacity, task.address, moved)
            task.address[-2] = task.slots[task.table, OWN][0]
        return bool(moved)


def _arriving(coming: Mapping[int, StoredRows], own: Mapping[Loaded, StoredOwn]) -> Arriving:
    """Returns for each table its new rows, each with its holder: an owner's identity, or a task."""
    found: Arriving = {}
    for identity, rows in coming.items():
        for leaf, of_leaf in rows.parts.items():
            for kind, parts in of_leaf.items():
                if count_of(parts):
                    found.setdefault((leaf, kind), []).append((identity, parts))
    for task, one in own.items():
        found.setdefault((task.table, OWN), []).append((task, _of_one(one)))
    return found


def _of_one(own: StoredOwn) -> dict[str, np.ndarray]:
    return {dtype: values[None] for dtype, values in own.vectors.items()}
