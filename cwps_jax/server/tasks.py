"""Which tasks the server answers for, and how they change while requests are under way."""

import asyncio
import contextlib
import functools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np

from cwps_jax.errors import CwpsError
from cwps_jax.serve import LearnedWith, learned_with
from cwps_jax.server.refusals import Refusal
from cwps_jax.settings import nearest
from cwps_jax.store import Pool
from cwps_jax.store.index import Version

_Result = TypeVar("_Result")


class Served(Protocol):
    """What a bank tells of a task that it serves: the version, and the pool in which it was found."""

    @property
    def pool(self) -> Pool: ...

    @property
    def version(self) -> Version: ...


class Bank(Protocol):
    """What the server asks of a `cwps.TaskBank`."""

    @property
    def tasks(self) -> tuple[str, ...]: ...

    @property
    def resident(self) -> dict[str, int]: ...

    def served(self, task: str) -> Served: ...

    def add(self, task: str) -> None: ...

    def drop(self, task: str) -> None: ...

    def refresh(self) -> None: ...

    def answer(self, prepared: np.ndarray, tasks: Sequence[str]) -> Sequence[np.ndarray]: ...


class Tasks:
    """The tasks of a bank, each with what its answers need beside the network.

    A request holds the tasks that it asks; whoever takes one away or replaces it waits until none is held,
    while requests for other tasks go on.

    Args:
        bank: that answers.
        pool: of the bank.
    """

    def __init__(self, bank: Bank, pool: Pool) -> None:
        self.bank, self.pool = bank, pool
        self.known: dict[str, LearnedWith] = {}
        self.silent: dict[str, str] = {}  # tasks whose network is there, but not what its answers need
        self._held: Counter[str] = Counter()
        self._closed: frozenset[str] = frozenset()
        self._changed = asyncio.Condition()
        self._one = asyncio.Lock()  # change at a time
        self._thread = ThreadPoolExecutor(1, "tasks")
        self._learn_of(bank.tasks)

    @contextlib.asynccontextmanager
    async def holding(
        self, names: Sequence[str], *, of_arrays: bool = False
    ) -> AsyncIterator[dict[str, LearnedWith]]:
        """Keeps tasks as they are while the block runs.

        Args:
            names: of tasks; none for all that are loaded and take what is asked about.
            of_arrays: whether they are asked about arrays, not about pictures.

        Yields:
            {name: what the task was learned with}, in the order of the names.

        Raises:
            Refusal: a task that is not loaded, or that does not take what it is asked about.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: not self._closed & set(names or self.known))
            fitting = [name for name, one in self.known.items() if _takes_arrays(one) == of_arrays]
            known = {name: self._loaded(name) for name in names or fitting}
            if not known:
                what = f"no task that takes {'arrays' if of_arrays else 'pictures'} is loaded"
                raise Refusal(404, what, "task", "POST /v1/load_task loads one")
            for one in known.values():
                if _takes_arrays(one) != of_arrays:
                    how = "/v1/tasks tells what each task takes"
                    raise Refusal(422, f"{one.name} takes {taken(one)}", "task", how)
            self._held.update(known.keys())
        try:
            yield known
        finally:
            async with self._changed:
                self._held.subtract(known.keys())
                self._changed.notify_all()

    async def load(self, task: str) -> None:
        """Loads a task of the pool. Raises Refusal where the pool has none of this name."""
        async with self._one:
            if task not in self.pool:
                raise self._unknown(task, self.pool.index.by_name, "POST /v1/reload reads a changed pool")
            if task not in self.bank.tasks:
                await self._apart(functools.partial(self.bank.add, task))
                self._learn_of([task])

    async def unload(self, task: str) -> None:
        """Frees a task, once no request asks it any more. Raises Refusal where it is not loaded."""
        async with self._one:
            if task not in self.bank.tasks:
                raise self._unknown(task, self.bank.tasks, "GET /v1/tasks lists what is loaded")
            async with self._closing({task}):
                await self._apart(functools.partial(self.bank.drop, task))
                self._forget([task])

    async def reload(self) -> list[str]:
        """Reads the pool anew; tasks with a newer version are replaced by it, those that are gone go.

        A bank of all tasks loads new ones, too.

        Returns:
            Names of the tasks that are loaded with another version than before, or not any more.
        """
        async with self._one:
            pool = await self._apart(lambda: Pool.open(self.pool.folder))
            served = {task: self.bank.served(task).version for task in self.bank.tasks}
            changed = [
                task
                for task, version in served.items()
                if task not in pool or pool.version(task).id != version.id
            ]
            async with self._closing(changed):
                await self._apart(self.bank.refresh)
                self.pool = pool
                self._forget(changed)
                self._learn_of(self.bank.tasks)
            return changed

    def close(self) -> None:
        """Ends the thread in which tasks are changed."""
        self._thread.shutdown()

    @contextlib.asynccontextmanager
    async def _closing(self, names: Iterable[str]) -> AsyncIterator[None]:
        async with self._changed:
            self._closed = frozenset(names)
            await self._changed.wait_for(lambda: not any(self._held[name] for name in self._closed))
        try:
            yield
        finally:
            async with self._changed:
                self._closed = frozenset()
                self._changed.notify_all()

    async def _apart(self, action: Callable[[], _Result]) -> _Result:
        """Runs what reads files, so that requests go on meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, action)

    def _learn_of(self, names: Iterable[str]) -> None:
        for name in names:
            if name in self.known or name in self.silent:
                continue
            try:
                served = self.bank.served(name)
                known = learned_with(served.pool, served.version.name)
            except CwpsError as error:
                self.silent[name] = str(error).removeprefix(f"{self.pool.folder}: ")  # no client's concern
                continue
            self.known[name] = known

    def _forget(self, names: Iterable[str]) -> None:
        for name in names:
            self.known.pop(name, None)
            self.silent.pop(name, None)

    def _loaded(self, name: str) -> LearnedWith:
        if name in self.known:
            return self.known[name]
        if name in self.silent:
            what, _, how = self.silent[name].partition("; ")
            raise Refusal(422, what, "task", how)
        if name in self.pool:
            raise Refusal(404, f"task {name!r} is not loaded", "task", "POST /v1/load_task loads it")
        raise self._unknown(name, self.known, "GET /v1/tasks lists all")

    def _unknown(self, name: str, known: Iterable[str], how: str) -> Refusal:
        near = nearest(name, known)
        return Refusal(
            404, f"no task {name[:80]!r}", "task", f"did you mean {near!r}? {how}" if near else how
        )


def taken(known: LearnedWith) -> str:
    """Returns what a task is asked about, in words."""
    if not _takes_arrays(known):
        return "pictures"
    return f"arrays (n, {', '.join(map(str, known.shape))}) of {known.dtype.name}"


def _takes_arrays(known: LearnedWith) -> bool:
    return known.transform is None
