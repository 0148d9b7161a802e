"""The tasks for which the server answers, and their changes while requests are under way."""

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
    """A task that a bank serves: its version, and the pool in which it was found."""

    @property
    def pool(self) -> Pool: ...

    @property
    def version(self) -> Version: ...


class Bank(Protocol):
    """The part of a `cwps.TaskBank` that the server uses."""

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
    """The tasks of a bank, each with the settings that its answers need beside the network.

    A request holds the tasks that it uses. A task is removed or replaced only when no request holds it;
    meanwhile requests for other tasks go on.

    Args:
        bank: the bank that answers.
        pool: the bank's pool.
    """

    def __init__(self, bank: Bank, pool: Pool) -> None:
        self.bank, self.pool = bank, pool
        self.known: dict[str, LearnedWith] = {}
        self.silent: dict[str, str] = {}  # loaded tasks that cannot answer, and the reasons
        self._held: Counter[str] = Counter()
        self._closed: frozenset[str] = frozenset()
        self._changed = asyncio.Condition()
        self._one = asyncio.Lock()  # lets one change be made at a time
        self._thread = ThreadPoolExecutor(1, "tasks")
        self.known |= self._learned(bank.tasks)

    @contextlib.asynccontextmanager
    async def holding(
        self, names: Sequence[str], *, of_arrays: bool = False
    ) -> AsyncIterator[dict[str, LearnedWith]]:
        """Keeps tasks as they are while the block runs.

        Args:
            names: the names of tasks; none for all loaded tasks that take such inputs.
            of_arrays: whether the inputs are arrays, not pictures.

        Yields:
            {name: the settings with which the task was learned}, in the order of the names.

        Raises:
            Refusal: a task is not loaded, or does not take such inputs.
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
        """Loads a task of the pool. Raises Refusal if the pool has none of this name."""
        async with self._one:
            if task not in self.pool:
                raise self._unknown(task, self.pool.index.by_name, "POST /v1/reload reads a changed pool")
            if task not in self.bank.tasks:
                await self._apart(functools.partial(self.bank.add, task))
                await self._answer_for(self._learned([task]))

    async def unload(self, task: str) -> None:
        """Frees a task, as soon as no request uses it. Raises Refusal if it is not loaded."""
        async with self._one:
            if task not in self.bank.tasks:
                raise self._unknown(task, self.bank.tasks, "GET /v1/tasks lists what is loaded")
            async with self._closing({task}):
                await self._apart(functools.partial(self.bank.drop, task))
                self._forget([task])

    async def reload(self) -> list[str]:
        """Reads the pool again; newer versions replace loaded ones, and removed tasks are freed.

        A bank of all tasks also loads new ones.

        Returns:
            Names of the tasks whose version has changed, or that are no longer loaded.
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
                await self._answer_for(self._learned(self.bank.tasks))
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
        """Runs an action that reads files in a thread, so that requests go on meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, action)

    def _learned(self, names: Iterable[str]) -> dict[str, LearnedWith]:
        """Returns the settings of those tasks that are not known yet; notes those whose settings are not."""
        found: dict[str, LearnedWith] = {}
        for name in names:
            if name in self.known or name in self.silent:
                continue
            try:
                served = self.bank.served(name)
                found[name] = learned_with(served.pool, served.version.name)
            except CwpsError as error:
                self._silence(name, error)
        return found

    async def _answer_for(self, learned: dict[str, LearnedWith]) -> None:
        """Answers for tasks from now on.

        One task of each kind is asked here first: its programs are compiled while other requests go on.
        """
        for (shape, dtype), name in {(one.shape, one.dtype): name for name, one in learned.items()}.items():
            nothing = np.zeros((1, *shape), dtype)
            try:
                await self._apart(functools.partial(self.bank.answer, nothing, [name]))
            except CwpsError as error:
                del learned[name]
                self._silence(name, error)
        self.known |= learned

    def _silence(self, name: str, error: CwpsError) -> None:
        self.silent[name] = str(error).removeprefix(f"{self.pool.folder}: ")  # hidden from clients

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
    """Returns a description in words of the inputs that a task takes."""
    if not _takes_arrays(known):
        return "pictures"
    return f"arrays (n, {', '.join(map(str, known.shape))}) of {known.dtype.name}"


def _takes_arrays(known: LearnedWith) -> bool:
    return known.transform is None
