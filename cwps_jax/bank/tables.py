"""Tables on the device whose rows come and go: a new row takes a free slot, which is later given back.

Programs that read tables are compiled again when a table grows. So that this happens rarely, all tables that
are nearly full grow together, by an additional eighth. They grow on the host, which needs no program.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from cwps_jax.bank.kinds import Parts

Key = tuple[str, str]  # the path of a leaf, or the name of a table of own values; and a kind
ROOM = 8  # growing tables get additional room for 1/ROOM of their rows
SPARE = 4  # tables are made smaller when 1/SPARE of their bytes is free


@dataclasses.dataclass(eq=False)
class Slots:
    """The number of slots of a table, and those that are free, int32 (free,)."""

    capacity: int = 0
    free: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int32))

    @property
    def used(self) -> int:
        return self.capacity - len(self.free)


class Tables:
    """Arrays of rows, {key: {part: (capacity, ...)}}.

    Attributes:
        arrays: {leaf: {kind: {part: array}}}, as programs read them.
    """

    def __init__(self) -> None:
        self.arrays: dict[str, dict[str, dict[str, jax.Array]]] = {}
        self._slots: dict[Key, Slots] = {}

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in jax.tree.leaves(self.arrays))

    @property
    def capacities(self) -> tuple[tuple[Key, int], ...]:
        """The number of rows for which each table has room: equal for tables of equal shapes."""
        return tuple((key, slots.capacity) for key, slots in self._slots.items())

    @property
    def _unused_bytes(self) -> int:
        free = 0
        for (leaf, kind), slots in self._slots.items():
            parts = self.arrays[leaf][kind].values()
            free += len(slots.free) * sum(_row_bytes(part) for part in parts)
        return free

    def grown_bytes(self, counts: Mapping[Key, int], shapes: Mapping[Key, Parts]) -> int:
        """Returns `nbytes` as it will be after more rows are added.

        Args:
            counts: {key: number of additional rows}.
            shapes: {key: arrays whose rows have the same shapes and dtypes}.
        """
        more = 0
        for key, capacity in self._grown(counts).items():
            row = sum(map(_row_bytes, (shapes[key] if key in shapes else self._table(key)).values()))
            more += (capacity - self._slots.get(key, Slots()).capacity) * row
        return self.nbytes + more

    def reserve(self, counts: Mapping[Key, int], shapes: Mapping[Key, Parts]) -> None:
        """Makes room for rows; see `grown_bytes`."""
        for key, capacity in self._grown(counts).items():
            slots, held = self._slots.setdefault(key, Slots()), self.arrays.get(key[0], {}).get(key[1], {})
            grown = {}
            for name, like in (held or shapes[key]).items():
                grown[name] = np.zeros((capacity, *like.shape[1:]), like.dtype)
                if held:
                    grown[name][: slots.capacity] = held[name]
            self._replace(key, grown)
            slots.free = np.append(slots.free, np.arange(slots.capacity, capacity, dtype=np.int32))
            slots.capacity = capacity

    def take(self, key: Key, count: int) -> np.ndarray:
        """Returns free slots for rows, int32 (count,); `reserve` must have made room for them."""
        slots = self._slots[key]
        taken, slots.free = slots.free[:count], slots.free[count:]
        return taken

    def fill(self, key: Key, rows: Parts) -> np.ndarray:
        """Makes a new table of rows, without room for others, and returns their slots, int32 (rows,).

        Args:
            key: the table's key.
            rows: the table's parts, each (rows, ...).
        """
        self._slots[key] = Slots(count_of(rows))
        self._replace(key, rows)
        return np.arange(count_of(rows), dtype=np.int32)

    def give_back(self, key: Key, slots: np.ndarray) -> None:
        """Frees slots."""
        self._slots[key].free = np.sort(np.append(self._slots[key].free, slots))

    def write(self, rows: Mapping[str, Any], slots: Mapping[str, Any]) -> None:
        """Writes rows in place.

        Args:
            rows: {leaf: {kind: {part: (count, ...)}}}, for some of the leaves and kinds of `arrays`.
            slots: {leaf: {kind: int32 (count,)}}; a row whose slot is beyond the table is not written.
        """
        written = {leaf: {kind: self.arrays[leaf][kind] for kind in some} for leaf, some in rows.items()}
        for leaf, some in _written(written, rows, slots).items():
            self.arrays[leaf].update(some)

    def shrink(self, *, least: bool) -> dict[Key, np.ndarray]:
        """Makes all tables smaller if much of them is free; programs that read them are compiled again.

        Args:
            least: whether to make them as small as possible, however little is free.

        Returns:
            {key: int32 (old capacity,), the new slot of each row of this table}.
        """
        found: dict[Key, np.ndarray] = {}
        if not least and self._unused_bytes * SPARE < self.nbytes:
            return found
        for key, slots in list(self._slots.items()):
            wanted = max(slots.used, 0 if least else 1)
            if slots.capacity <= wanted:
                continue
            leaf, kind = key
            if not wanted:
                del self._slots[key], self.arrays[leaf][kind]
                found[key] = np.empty(0, np.int32)
                continue
            taken = np.setdiff1d(np.arange(slots.capacity), slots.free)
            found[key] = np.zeros(slots.capacity, np.int32)
            found[key][taken] = np.arange(len(taken))
            from_old = np.zeros(wanted, np.int32)
            from_old[: len(taken)] = taken
            self._replace(key, {name: np.asarray(part)[from_old] for name, part in self._table(key).items()})
            slots.capacity, slots.free = wanted, np.arange(len(taken), wanted, dtype=np.int32)
        return found

    def _grown(self, counts: Mapping[Key, int]) -> dict[Key, int]:
        """Returns the new capacities of those tables that must grow for additional rows."""
        wanted = {key: slots.used + counts.get(key, 0) for key, slots in self._slots.items()}
        wanted |= {key: count for key, count in counts.items() if key not in wanted}
        held = {key: self._slots[key].capacity if key in self._slots else 0 for key in wanted}
        if all(wanted[key] <= held[key] for key in wanted):
            return {}
        room = {key: wanted[key] + (wanted[key] // ROOM if self._slots else 0) for key in wanted}
        return {key: room[key] for key in wanted if room[key] > held[key]}

    def _table(self, key: Key) -> dict[str, jax.Array]:
        return self.arrays[key[0]][key[1]]

    def _replace(self, key: Key, parts: Mapping[str, Any]) -> None:
        self.arrays.setdefault(key[0], {})[key[1]] = jax.device_put(dict(parts))


@functools.partial(jax.jit, donate_argnums=0)
def _written(tables: Any, rows: Any, slots: Any) -> Any:
    return {
        leaf: {
            kind: {
                part: array.at[slots[leaf][kind]].set(rows[leaf][kind][part], mode="drop")
                for part, array in parts.items()
            }
            for kind, parts in some.items()
        }
        for leaf, some in tables.items()
    }


def count_of(rows: Parts) -> int:
    """Returns the number of rows that parts have."""
    return len(next(iter(rows.values())))


def _row_bytes(part: Any) -> int:
    return int(np.prod(part.shape[1:])) * np.dtype(part.dtype).itemsize
