"""`Contents`: the readable content of a pool: models, and the owners of their channels."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import flax.linen as nn
import numpy as np

from cwps_jax import methods
from cwps_jax.core import accounting
from cwps_jax.core.channels import Layout
from cwps_jax.core.trees import Tree, flatten
from cwps_jax.errors import CwpsError
from cwps_jax.methods import channels
from cwps_jax.methods.channels import Ownership
from cwps_jax.methods.method import Method, Stored
from cwps_jax.methods.pooled import Pooled
from cwps_jax.search.models import StoredModels
from cwps_jax.settings import nearest
from cwps_jax.store.coded import NO_NORMS, coded
from cwps_jax.store.damage import Damage, damaged
from cwps_jax.store.index import Index, Version
from cwps_jax.store.listing import listed
from cwps_jax.store.trees import PRETRAINED, Trees

NAMED = 20  # tasks that an error names


class Contents:
    """The models stored in one folder, to be read.

    Attributes:
        folder: the pool's folder.
    """

    def __init__(self, folder: pathlib.Path, index: Index) -> None:
        self.folder = folder
        self._trees = Trees(folder, index)
        self._ownerships: dict[int, Ownership] = {}
        self._pooled: tuple[Any, StoredModels] | None = None  # the newest alone

    @property
    def index(self) -> Index:
        """The index of the pool."""
        return self._trees.index

    @property
    def layout(self) -> Layout:
        """The pre-trained model's layout."""
        return self.index.layout

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the stored tasks, oldest first."""
        stored = (version.task for version in self.index.versions if not version.compared)
        return tuple(dict.fromkeys(stored))

    def __contains__(self, task: object) -> bool:
        return task in self.index.by_name

    def __len__(self) -> int:
        """The number of tasks."""
        return len(self.tasks)

    def __bool__(self) -> bool:
        """True: a pool is one, even without tasks."""
        return True

    def __iter__(self) -> Iterator[str]:
        """The names of the tasks, oldest first."""
        return iter(self.tasks)

    def __repr__(self) -> str:
        """A table of the newest tasks, which reads no tree."""
        return listed(self.folder, self.index, self.tasks)

    def verify(self) -> list[Damage]:
        """Checks every file and every owner, and returns the damage and the versions that need each part."""
        return damaged(self._trees)

    def version(self, task: str) -> Version:
        """Returns a task's newest version, or the one named "task@n".

        Args:
            task: a task's name, or "task@n".

        Raises:
            CwpsError: it is not in the pool.
        """
        if task == PRETRAINED:
            raise CwpsError(
                f"{self.folder}: {task!r} is the model that tasks start from, and not a task; name one of "
                f"{', '.join(self.tasks[-NAMED:]) or 'none yet'}"
            )
        if task not in self.index.by_name:
            raise CwpsError(f"{self.folder}: no task {task!r} in this pool; {self._known(task)}")
        return self.index.by_name[task]

    def effective(self, task: str) -> dict[str, Any]:
        """Returns the plain backbone's variables of a task: "params" and its other collections.

        They are NumPy arrays, equal to the bit to those that were trained; those that are mapped from the
        pool's files are read-only.

        Args:
            task: a task's name, "task@n", or "pretrained".

        Raises:
            CwpsError: not in the pool, or a stored tree is damaged.
        """
        if task == PRETRAINED:
            return self._trees.shared()
        version = self.version(task)
        uses = tuple(self.index.by_id[one] for one in version.uses)
        own, rows = self._trees.own(version), self._trees.rows(version.id)
        return self._trees.restored(self.method(task), version.id, own, rows, uses, self.effective)

    def restored(self, method: Method, stored: Stored) -> dict[str, Any]:
        """Returns `effective` of a task that is not in the pool yet.

        Args:
            method: by which it is restored.
            stored: what there is to store of it, see `coded`.
        """
        uses = tuple(map(self.version, stored.uses))
        own, number = flatten(stored.own), self.index.next_id
        return self._trees.restored(method, number, own, stored.rows, uses, self.effective)

    def coded(
        self, stored: Stored, bits: int, byte_budget: float = 0.0, folding: Mapping[str, float] = NO_NORMS
    ) -> Stored:
        """Returns the stored arrays of a task in few bits, see `store.coded`.

        Args:
            stored: the same in float32.
            bits, byte_budget: see the config's `row_bits` and `byte_budget`.
            folding: {path of a batch norm: its epsilon}, those that may be stored without statistics.
        """
        start, before = self._trees.rows(0), self._trees.before()
        return coded(self.layout, stored, bits, start, before, byte_budget, folding)

    def method(self, task: str) -> Method:
        """Returns the method by which a task is stored, with its settings.

        Args:
            task: a task's name, or "task@n".

        Raises:
            CwpsError: not in the pool, or a method or a setting that this version does not know.
        """
        version = self.version(task)
        try:
            return methods.with_settings(version.method, version.settings)
        except CwpsError as error:
            raise CwpsError(
                f"{self.folder}: {version.name} is stored by a method that is not known here ({error}); "
                "register the method, or use the cwps_jax that wrote it"
            ) from error

    def model(self, task: str, model: nn.Module) -> nn.Module:
        """Returns the model for a task's variables: the plain one, unless its method changes it.

        Args:
            task: a task's name, "task@n", or "pretrained".
            model: the plain model with the task's head.
        """
        return model if task == PRETRAINED else self.method(task).wrap(model)

    def shares_channels(self, task: str) -> bool:
        """Returns whether a task is stored as channels: its own rows, and the owners of the others.

        Args:
            task: a task's name, or "task@n".
        """
        return bool(self.version(task).rows_sha256)

    def gates(self, task: str) -> dict[str, np.ndarray]:
        """Returns a task's hard gates, a nested dict of boolean arrays in the kernels' places.

        Args:
            task: a task's name, or "task@n".
        """
        return channels.gates_of(self.layout, self._trees.own(self._of_channels(task)))

    def ownership(self, task: str) -> Ownership:
        """Returns {path of a kernel: (id of each channel's owner, its row there)}, integers (channels,).

        Args:
            task: a task's name, "task@n", or "pretrained", which owns all of its channels.
        """
        if task == PRETRAINED:
            own = {layer.path: np.arange(layer.channels) for layer in self.layout.layers}
            return {path: (np.zeros_like(rows), rows) for path, rows in own.items()}
        version = self._of_channels(task)
        if version.id not in self._ownerships:
            found = channels.ownership(self.layout, self._trees.own(version), version.id)
            self._ownerships.setdefault(version.id, found)
        return self._ownerships[version.id]

    def relation(self, task: str) -> dict[str, float]:
        """Returns the share of a task's channels that each owner stores, weighted by parameters.

        Args:
            task: a task's name, "task@n", or "pretrained".

        Raises:
            CwpsError: not in the pool, or not stored as channels.
        """
        if task == PRETRAINED:
            return {PRETRAINED: 1.0}
        version = self._of_channels(task)
        owned = {int(owner): count for owner, count in (version.owned or {}).items()}
        if not owned:  # stored by an earlier release
            owners = {path: owner for path, (owner, _) in self.ownership(task).items()}
            owned = accounting.owned(self.layout, owners)
        names = {owner: self.index.by_id[owner].task if owner else PRETRAINED for owner in owned}
        return accounting.relation(owned, names)

    def relation_matrix(self) -> tuple[tuple[str, ...], tuple[str, ...], np.ndarray]:
        """Returns the tasks that are stored as channels, the owners, and each owner's share of each task.

        Returns:
            Names of the tasks; names of the owners, "pretrained" first; float64 (tasks, owners), whose rows
            sum to 1.
        """
        tasks = tuple(task for task in self.tasks if self.shares_channels(task))
        owners, relations = (PRETRAINED, *tasks), {task: self.relation(task) for task in tasks}
        return tasks, owners, accounting.relation_matrix(relations, owners)

    def total_ratio(self) -> float:
        """Returns the stored parameters of all tasks and the pre-trained model, over those of the latter."""
        return 1 + sum(self.count(task).ratio for task in self.tasks)

    def count(self, task: str) -> accounting.Count:
        """Returns the stored parameters, bits and bytes of a task's version, without reading its rows.

        Args:
            task: a task's name, or "task@n".
        """
        version = self.version(task)
        counted = accounting.count_stored(self.layout, self._trees.own(version).leaves, {})
        of_rows = accounting.count(self.layout, self.gates(task)).active if self.shares_channels(task) else 0
        return dataclasses.replace(counted, active=counted.active + of_rows, bits=8 * version.bytes)

    def pooled(self, without: str | None = None, method: str = "") -> Pooled:
        """Returns the pre-trained model and every task's newest one, oldest first, as a new task uses them.

        Args:
            without: a task to leave out, with its models and its rows that others have borrowed; these are
                replaced by the pre-trained model's.
            method: the method of the new task, which gets the stored arrays of its earlier tasks.
        """
        tasks = [task for task in self.tasks if task != without]
        names = (PRETRAINED, *(task for task in tasks if self.shares_channels(task)))
        stored = tuple(version.id for version in self.index.versions), names
        if not self._pooled or self._pooled[0] != stored:
            self._pooled = stored, self._models(names)
        return Pooled(
            self._pooled[1],
            names,
            {task: functools.partial(self._params, task) for task in tasks},
            {
                version.name: functools.partial(self._trees.own, version)
                for version in self.index.versions
                if version.method == method
            },
        )

    def _known(self, task: str) -> str:
        near, last = nearest(task, [PRETRAINED, *self.index.by_name]), self.tasks[-NAMED:]
        more = f" and {len(self) - NAMED} older ones" if len(self) > NAMED else ""
        return f"{f'did you mean {near!r}? ' if near else ''}it has {', '.join((PRETRAINED, *last))}{more}"

    def _models(self, names: tuple[str, ...]) -> StoredModels:
        """Returns the models of tasks; rows of other tasks are replaced by the pre-trained model's."""
        # Two threads: one waits for files; more would wait for Python's lock.
        with ThreadPoolExecutor(2) as readers:
            ownerships = list(readers.map(self.ownership, names[1:]))
        others = [one.id for one in self.index.versions if one.rows_sha256 and one.task not in names]
        owner, row = {}, {}
        for layer in self.layout.layers:
            own = np.zeros(layer.channels, np.int32), np.arange(layer.channels, dtype=np.int32)
            pairs = [own, *(ownership[layer.path] for ownership in ownerships)]
            owners, rows = (np.stack(one) for one in zip(*pairs, strict=True))
            if others:
                gone = np.isin(owners, others)
                owners, rows = np.where(gone, 0, owners), np.where(gone, own[1], rows)
            owner[layer.path], row[layer.path] = owners, rows
        return StoredModels(owner, row, self._trees.rows, self._trees.sketch, self._trees.pretrained)

    def _of_channels(self, task: str) -> Version:
        if not self.shares_channels(task):
            version = self.version(task)
            raise CwpsError(
                f"{self.folder}: {version.name} is stored by {version.method}, not as channels with owners"
            )
        return self.version(task)

    def _params(self, task: str) -> Tree:
        return self.effective(task)["params"]
