"""`Bank`: tasks that are answered from one backbone, with each stored row once on the device."""

import collections
import contextlib
import functools
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from cwps_jax.bank.compiled import holding
from cwps_jax.bank.costs import bucket
from cwps_jax.bank.entries import Described, Entry
from cwps_jax.bank.finding import Shelf
from cwps_jax.bank.resident import Resident
from cwps_jax.bank.stored import classes_of
from cwps_jax.bank.ways import WAYS, Ways, parts_of
from cwps_jax.errors import CwpsError
from cwps_jax.settings import nearest
from cwps_jax.store.pool import Pool

NAMED = 20  # the most tasks that an error names


class Bank:
    """Tasks of a pool, answered from one backbone.

    Three ways to run give the same answers, merged and swapped to the bit: *merged*, a task's whole network
    is made on the device and kept for the next request; *swapped*, it takes the place of another one in a
    working copy; *mixed*, pictures of many tasks go through the network together. Threads may share a bank.

    Args:
        pool: the stored models.
        tasks: names, "birds" or "birds@2"; None for all tasks, also those stored later, see `refresh`.
        model: the plain model with its widest head, if the pool's backbone is a model of your own.
        device_bytes: the most bytes on the device; 0 for no limit.
        host_bytes: the most bytes on the host, of rows that the device has no room for; 0 for no limit.

    Raises:
        CwpsError: there is no such task; a named task cannot be served, for example because its method adds
            to its model; no task of the pool can be served; or a limit is too small.
    """

    def __init__(
        self,
        pool: Pool,
        tasks: Sequence[str] | None = None,
        *,
        model: nn.Module | None = None,
        device_bytes: int = 0,
        host_bytes: int = 0,
    ) -> None:
        self._shelf = Shelf(pool, model, self.described)
        self._all = tasks is None
        self._dropped: set[str] = set()
        self._lock = threading.RLock()
        self._entries: dict[str, Entry] = {}
        resident = Resident(self._shelf.trees, device_bytes, host_bytes)
        self._ways = Ways(resident, self._shelf.model_of, functools.partial(holding, self._lock))
        found = self._found(pool.tasks if tasks is None else dict.fromkeys(tasks))
        if self.left_out and not found:
            raise CwpsError(next(iter(self.left_out.values())))
        self._serve(found)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that are served, as they were asked for."""
        return tuple(self._entries)

    @property
    def left_out(self) -> dict[str, str]:
        """Tasks of the pool that cannot be served, {name: reason}, if the bank serves all tasks.

        A warning names each of them, and a request for one is refused with the reason.
        """
        return self._shelf.left_out

    @property
    def resident(self) -> dict[str, int]:
        """Bytes of the served tasks: "device"; "host", rows that the device has no room for; "disk"."""
        with self._lock:
            loaded = [entry for entry in self._entries.values() if entry.loaded]
            far = [one for one in loaded if not self._ways.resident.is_near(one.version.id)]
            return {
                "device": self._ways.resident.device_bytes,
                "host": self._ways.resident.host_bytes,
                "disk": sum(entry.version.bytes for entry in far),
            }

    def described(self, pool: Pool, task: str) -> Described:
        """Returns a description of a task's inputs and outputs, as far as its arrays show them.

        Args:
            pool: the pool in which the task is stored.
            task: the task's name.
        """
        return Described(classes_of(pool.layout, self._shelf.trees.own(pool.version(task)).leaves))

    def served(self, name: str) -> Entry:
        """Returns a task that is served.

        Args:
            name: the task's name, as it was asked for.

        Raises:
            CwpsError: the task is not served; the message gives the most similar name.
        """
        if name not in self._entries:
            near = nearest(name, self._entries)
            if name in self.left_out:
                raise CwpsError(f"task {name!r} was left out of this bank: {self.left_out[name]}")
            if name in self._shelf.pool:
                raise CwpsError(f"task {name!r} is in the pool, but not served: bank.add({name!r}) first")
            raise CwpsError(
                f"no task {name!r} in this bank; {f'did you mean {near!r}? ' if near else ''}it serves "
                f"{', '.join(self.tasks[-NAMED:]) or 'none yet'}"
            )
        return self._entries[name]

    def add(self, task: str) -> None:
        """Serves one more task, or its newest version from now on.

        Args:
            task: the task's name, or "task@n".

        Raises:
            CwpsError: see `Bank`.
        """
        with self._lock:
            if task not in self._shelf.pool:
                self._shelf.open_anew()
            self._serve([self._shelf.found(task)])
            self._dropped.discard(task)

    def drop(self, task: str) -> None:
        """Stops serving a task. Requests under way are answered; then its memory is freed.

        Args:
            task: the task's name, as it was asked for.

        Raises:
            CwpsError: the task is not served.
        """
        with self._lock:
            entry = self.served(task)
            del self._entries[task]
            self._dropped.add(task)
            self._retire(entry)

    def refresh(self) -> None:
        """Opens the pool again: newer versions replace those that are served.

        A bank of all tasks also serves new ones, except those that were dropped. A task that is no longer
        in the pool is no longer served.
        """
        with self._lock:
            self._shelf.open_anew()
            names = [name for name in self._entries if name in self._shelf.pool]
            if self._all:
                names += [name for name in self._shelf.pool.tasks if name not in {*names, *self._dropped}]
            for name in [name for name in self._entries if name not in self._shelf.pool]:
                self._retire(self._entries.pop(name))
            old = {name: entry.version.id for name, entry in self._entries.items()}
            changed = [name for name in names if old.get(name) != self._shelf.pool.version(name).id]
            found = self._found(changed)
            for name in self.left_out.keys() & self._entries.keys():
                self._retire(self._entries.pop(name))
            self._serve(found)

    def answer(self, prepared: Any, tasks: str | Sequence[str], way: str = "") -> list[np.ndarray]:
        """Returns the logits of each picture, (classes of its task,).

        Args:
            prepared: (n, height, width, channels), uint8 pixels or float numbers, as the tasks' models take
                them before the preparation that runs on the device.
            tasks: one task for each picture, or one for all.
            way: "merged", "swapped" or "mixed"; by default the fastest one, see `way`.

        Raises:
            CwpsError: a task is not served, the numbers of tasks and pictures differ, the way is unknown, or
                it is "mixed" and a task is not stored as channels.
        """
        prepared = np.asarray(prepared)
        names = [tasks] * len(prepared) if isinstance(tasks, str) else list(tasks)
        if len(names) != len(prepared):
            raise CwpsError(
                f"{len(prepared)} pictures for {len(names)} tasks: give one task for each picture"
            )
        if way not in ("", *WAYS):
            raise CwpsError(f"way={way!r} is none of {', '.join(WAYS)}; choose one, or leave it out")
        with self._leased(names) as found:
            way = way or self._way(collections.Counter(found), prepared[:1])
            with self._lock:
                self._ways.asked(found)
            running = [
                (numbers, self._started(way, [found[number] for number in numbers], prepared[numbers]))
                for numbers in parts_of(found, way)
            ]
            rows = {
                number: row
                for numbers, logits in running
                for number, row in zip(numbers, np.asarray(logits)[: len(numbers)], strict=True)  # no padding
            }
            return [rows[number][: entry.described.classes] for number, entry in enumerate(found)]

    def way(self, counts: Mapping[str, int]) -> str:
        """Returns the way that takes the least time for a request, by measurements on this machine.

        Missing measurements are made now, one for each power of two of pictures.

        Args:
            counts: {task: number of pictures}.
        """
        with self._leased(list(counts)) as found:
            return self._way(dict(zip(found, counts.values(), strict=True)))

    def measure(self, counts: Mapping[str, int]) -> dict[str, float]:
        """Measures all ways for a request, even if they were measured before; returns {way: seconds}.

        Args:
            counts: {task: number of pictures}.
        """
        with self._lock:
            self._ways.costs.seconds.clear()
        with self._leased(list(counts)) as found:
            return self._seconds(dict(zip(found, counts.values(), strict=True)))

    def _way(self, counts: Mapping[Entry, int], image: np.ndarray | None = None) -> str:
        return min((seconds := self._seconds(counts, image)), key=lambda way: seconds[way])

    def _seconds(self, counts: Mapping[Entry, int], image: np.ndarray | None = None) -> dict[str, float]:
        for entry in counts:
            if image is None and not entry.described.shape:
                raise CwpsError(f"{entry.name!r}: the pool does not say what images it takes; name a way")
        return self._ways.seconds(counts, image)

    def _started(self, way: str, found: Sequence[Entry], pixels: np.ndarray) -> jax.Array:
        """Starts a program for pictures of one task, or of several mixed tasks; returns its logits."""
        room = bucket(len(pixels)) - len(pixels)
        padded = np.concatenate([pixels, np.zeros((room, *pixels.shape[1:]), pixels.dtype)])
        if way == "mixed":
            return holding(self._lock, lambda: self._ways.mixed(found, padded))
        return holding(self._lock, lambda: self._ways.alone(found[0], padded, way))

    @contextlib.contextmanager
    def _leased(self, names: Sequence[str]) -> Iterator[list[Entry]]:
        """Lends tasks to a request: a task that is dropped meanwhile is freed when the request has ended."""
        with self._lock:
            found = [self.served(name) for name in names]
            for entry in found:
                entry.uses += 1
        try:
            yield found
        finally:
            with self._lock:
                for entry in found:
                    entry.uses -= 1
                self._free([entry for entry in dict.fromkeys(found) if entry.dropped])

    def _found(self, names: Iterable[str]) -> list[Entry]:
        return self._shelf.servable(names) if self._all else [self._shelf.found(name) for name in names]

    def _serve(self, found: Sequence[Entry]) -> None:
        """Serves tasks from now on, in the place of those with the same names."""
        widest = max((entry.described.classes for entry in found), default=1)
        ways = self._ways
        grown = widest > ways.classes
        if grown:  # Heads are padded to this width, so all tasks are loaded again.
            ways.classes = bucket(widest) if self._shelf.model is None else widest
            for entry in self._entries.values():
                ways.forget(entry)
        for entry in found:
            if entry.name in self._entries:
                self._retire(self._entries[entry.name])
            self._entries[entry.name] = entry
        tasks = [entry.loaded for entry in self._entries.values() if entry.loaded]
        for task in tasks:
            task.classes = ways.classes
        if ways.resident.limits[0]:  # Each task is loaded when it is asked for.
            for task in tasks if grown else [entry.loaded for entry in found if entry.loaded]:
                ways.resident.note(task)
        else:
            ways.resident.load(tasks)

    def _retire(self, entry: Entry) -> None:
        entry.dropped = True
        self._free([entry])

    def _free(self, dropped: Sequence[Entry]) -> None:
        """Frees the memory of those dropped tasks that no request needs."""
        for entry in (idle := [entry for entry in dropped if not entry.uses]):
            self._ways.forget(entry)
        if idle:
            self._ways.resident.forget([one.loaded for one in self._entries.values() if one.loaded])
