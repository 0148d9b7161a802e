"""Tables on the device whose rows come and go: a slot of each is found for what comes, and given back.

A table grows by an eighth at least, so that it grows, and what reads it is compiled anew, rarely.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Key = tuple[str, str]  # path of a leaf, or what stands for one, and a kind
ROOM = 8  # a table grows by one part in so many
SPARE = 4  # tables are made smaller when one part in so many of their bytes is free


@dataclasses.dataclass(eq=False)
class Slots:
    """Which rows of a table are taken."""

    capacity: int = 0
    free: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int32))

    @property
    def used(self) -> int:
        return self.capacity - len(self.free)

    def grown(self, count: int) -> int:
        """Returns the capacity with which as many more fit."""
        if count <= len(self.free):
            return self.capacity
        least = self.capacity + self.capacity // ROOM if self.capacity else 1
        return max(self.used + count, least)


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
    def _unused_bytes(self) -> int:
        free = 0
        for (leaf, kind), slots in self._slots.items():
            parts = self.arrays[leaf][kind].values()
            free += len(slots.free) * sum(_row_bytes(part) for part in parts)
        return free

    def grown_bytes(self, counts: Mapping[Key, int], shapes: Mapping[Key, Any]) -> int:
        """Returns `nbytes` once as many rows more are in.

        Args:
            counts: rows by key.
            shapes: {key: {part: an array whose rows are alike}}.
        """
        more = 0
        for key, count in counts.items():
            slots = self._slots.get(key, Slots())
            row = sum(_row_bytes(part) for part in shapes[key].values())
            more += (slots.grown(count) - slots.capacity) * row
        return self.nbytes + more

    def reserve(self, counts: Mapping[Key, int], shapes: Mapping[Key, Any]) -> None:
        """Makes room for rows; see `grown_bytes`."""
        for key, count in counts.items():
            slots = self._slots.setdefault(key, Slots())
            capacity = slots.grown(count)
            leaf, kind = key
            table = self.arrays.setdefault(leaf, {})
            if capacity == slots.capacity and kind in table:
                continue
            for part, like in shapes[key].items():
                more = jnp.zeros((capacity - slots.capacity, *like.shape[1:]), like.dtype)
                held = table.get(kind, {}).get(part)
                table.setdefault(kind, {})[part] = more if held is None else jnp.concatenate([held, more])
            slots.free = np.append(slots.free, np.arange(slots.capacity, capacity, dtype=np.int32))
            slots.capacity = capacity

    def take(self, key: Key, count: int) -> np.ndarray:
        """Returns slots for rows, int32 (count,), for which there is room."""
        slots = self._slots[key]
        taken, slots.free = slots.free[:count], slots.free[count:]
        return taken

    def give_back(self, key: Key, slots: np.ndarray) -> None:
        """Frees slots."""
        self._slots[key].free = np.sort(np.append(self._slots[key].free, slots))

    def write(self, rows: Mapping[str, Any], slots: Mapping[str, Any]) -> None:
        """Writes rows in place.

        Args:
            rows: {leaf: {kind: {part: (count, ...)}}}, a part of `arrays`.
            slots: {leaf: {kind: int32 (count,)}}; a number beyond the table is left out.
        """
        written = {leaf: {kind: self.arrays[leaf][kind] for kind in some} for leaf, some in rows.items()}
        for leaf, some in _written(written, rows, slots).items():
            self.arrays[leaf].update(some)

    def shrink(self, *, least: bool) -> dict[Key, np.ndarray]:
        """Makes all tables smaller, where much of them is room: what reads them is compiled anew.

        Args:
            least: make them as small as can be, whatever room there is.

        Returns:
            {key: int32 (old capacity,), where each row of it is now}.
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
            self.arrays[leaf][kind] = {
                part: jnp.take(array, from_old, axis=0) for part, array in self.arrays[leaf][kind].items()
            }
            slots.capacity, slots.free = wanted, np.arange(len(taken), wanted, dtype=np.int32)
        return found


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


def _row_bytes(part: Any) -> int:
    return int(np.prod(part.shape[1:])) * np.dtype(part.dtype).itemsize
