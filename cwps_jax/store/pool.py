"""`Pool`: the stored models, of which every new task takes channels and to which it adds its own.

::

    pool/
      index.json            what there is; replaced atomically, after everything it names is written
      pretrained/           the shared tree: the pre-trained model, whole
      tasks/birds@1/        the trees of a version:
        own/                  all that is its own but rows, in its method's form: see `methods.channels`
        rows/                 what later versions borrow, where the method has such
        sketch/               the same in 8 bits, what a search looks at first: `cwps_jax.search.sketch`

What is written is never changed. How a tree is stored: `cwps_jax.store.arrays`.
"""

import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Mapping
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
from cwps_jax.methods.method import Method, Pooled, Stored
from cwps_jax.search.composite import Source
from cwps_jax.search.models import StoredModels
from cwps_jax.settings import check_task_name
from cwps_jax.store import arrays
from cwps_jax.store.index import Index, Version
from cwps_jax.store.trees import OWN, PRETRAINED, ROWS, SKETCH, Trees


class Pool:
    """The models stored in one folder. Open one with `Pool.open`, make one with `Pool.create`.

    Attributes:
        folder: where it is.
    """

    def __init__(self, folder: pathlib.Path, index: Index) -> None:
        self.folder = folder
        self._trees = Trees(folder, index)
        self._ownerships: dict[int, Ownership] = {}
        # The newest alone: every method of a task asks for it.
        self._pooled: tuple[Any, StoredModels] | None = None

    @classmethod
    def create(
        cls,
        folder: str | pathlib.Path,
        variables: Mapping[str, Any],
        layout: Layout,
        *,
        backbone: str = "",
        record: Mapping[str, Any] | None = None,
    ) -> "Pool":
        """Makes a pool that holds the pre-trained model alone.

        Args:
            folder: a folder without a pool.
            variables: the pre-trained model's variables: "params" and its other collections.
            layout: where its leaves belong, see `channel_layout`; the head may have another size.
            backbone: its name, so that another one is refused.
            record: where it came from; plain JSON.

        Raises:
            CwpsError: there is a pool already, or the variables are not those of the layout.
        """
        folder = pathlib.Path(folder)
        if (folder / "index.json").exists():
            raise CwpsError(f"{folder}: there is a pool already; open it, or name another folder")
        shapes = {path: tuple(leaf.shape) for path, leaf in flatten(variables["params"]).items()}
        head = tuple((path, shapes.pop(path)) for path in layout.head_paths if path in shapes)
        wanted = layout.backbone_shapes
        if shapes != wanted:
            path = min(path for path in shapes.keys() | wanted.keys() if shapes.get(path) != wanted.get(path))
            raise CwpsError(
                f"{path}: {shapes.get(path, 'missing')} in the variables, {wanted.get(path, 'missing')} in "
                "the layout; give the layout of this very model"
            )
        folder.mkdir(parents=True, exist_ok=True)
        sha256 = arrays.save(folder / PRETRAINED, variables)
        Index(backbone, dataclasses.replace(layout, head=head), sha256, dict(record or {})).write(folder)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | pathlib.Path) -> "Pool":
        """Opens a pool.

        Args:
            folder: where it is.

        Raises:
            CwpsError: there is none.
        """
        folder = pathlib.Path(folder)
        return cls(folder, Index.read(folder))

    @property
    def index(self) -> Index:
        """What it holds."""
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

    def version(self, task: str) -> Version:
        """Returns a task's newest version, or the one named "task@n".

        Raises:
            CwpsError: it is not in the pool.
        """
        if task not in self.index.by_name:
            known = ", ".join((PRETRAINED, *self.tasks))
            raise CwpsError(f"{self.folder}: no task {task!r} in this pool; it has {known}")
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
        """Returns `effective` of what is not in the pool yet, as it will be."""
        own = {path: np.asarray(leaf) for path, leaf in flatten(stored.own).items()}
        uses = tuple(map(self.version, stored.uses))
        return self._trees.restored(method, self._next_id(), own, stored.rows, uses, self.effective)

    def method(self, task: str) -> Method:
        """Returns the method by which a task is stored, with its settings.

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
        """Returns the model that a task's variables belong to: the plain one, unless its method adds to it.

        Args:
            task: a task's name, "task@n", or "pretrained".
            model: the plain model with the task's head.
        """
        return model if task == PRETRAINED else self.method(task).wrap(model)

    def shares_channels(self, task: str) -> bool:
        """Whether a task is stored as channels: its own rows, and who stores each of the others."""
        return bool(self.version(task).rows_sha256)

    def gates(self, task: str) -> dict[str, np.ndarray]:
        """Returns a task's hard gates, a nested dict of boolean arrays. Raises CwpsError if it has none."""
        return channels.gates_of(self.layout, self._trees.own(self._of_channels(task)))

    def ownership(self, version: Version) -> Ownership:
        """Returns {path of a kernel: (id of each channel's owner, its row there)}.

        Raises:
            CwpsError: the version is not stored as channels.
        """
        if version.id not in self._ownerships:
            own = self._trees.own(self._of_channels(version.name))
            self._ownerships.setdefault(version.id, channels.ownership(self.layout, own, version.id))
        return self._ownerships[version.id]

    def relation(self, task: str) -> dict[str, float]:
        """Returns the share of a task's channels that each owner stores, weighted by parameters."""
        ownership = self.ownership(self.version(task))
        names = [PRETRAINED, *dict.fromkeys(version.task for version in self.index.versions)]
        number = {name: place for place, name in enumerate(names)}
        place = np.zeros(1 + max(self.index.by_id), np.int64)
        for version in self.index.versions:
            place[version.id] = number[version.task]
        owners = {path: place[owner] for path, (owner, _) in ownership.items()}
        return accounting.relation(self.layout, owners, names)

    def count(self, task: str) -> accounting.Count:
        """Counts what a task's version stores, without reading its rows."""
        version = self.version(task)
        counted = accounting.count_stored(self.layout, self._trees.own(version), {})
        of_rows = accounting.count(self.layout, self.gates(task)).active if self.shares_channels(task) else 0
        return dataclasses.replace(counted, active=counted.active + of_rows, bits=8 * version.bytes)

    def pooled(self, without: str | None = None, method: str = "") -> Pooled:
        """Returns the pre-trained model and every task's newest one, oldest first, as a new task uses them.

        Args:
            without: a task to leave out.
            method: by which the new task is learned: what is stored by it is handed to it.
        """
        tasks = [task for task in self.tasks if task != without]
        names = (PRETRAINED, *(task for task in tasks if self.shares_channels(task)))
        stored = tuple(version.id for version in self.index.versions), names
        if self._pooled is None or self._pooled[0] != stored:
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

    def _models(self, names: tuple[str, ...]) -> StoredModels:
        # Two threads: one waits for files; more would wait for Python's lock.
        with ThreadPoolExecutor(2) as readers:
            ownerships = list(readers.map(self.ownership, map(self.version, names[1:])))
        owner, row = {}, {}
        for layer in self.layout.layers:
            own = np.zeros(layer.channels, np.int32), np.arange(layer.channels, dtype=np.int32)
            pairs = [own, *(ownership[layer.path] for ownership in ownerships)]
            owner[layer.path], row[layer.path] = (np.stack(one) for one in zip(*pairs, strict=True))
        return StoredModels(owner, row, self._trees.rows, self._trees.sketch, self._trees.pretrained)

    def add(
        self,
        task: str,
        params: Tree,
        other: Mapping[str, Tree],
        gates: Tree,
        sources: Mapping[str, Source],
        pooled: tuple[str, ...],
        record: Mapping[str, Any],
    ) -> Version:
        """Stores a new version of a task whose network is one of shared channels.

        Args:
            task: its name.
            params: the plain backbone's parameters, mixed.
            other: its other collections.
            gates: nested dict of hard gates; open channels are stored.
            sources: {path of a kernel: where the closed channels came from}; a layer that is missing took
                them from the pre-trained model at the same index.
            pooled: names of the models that `sources` counts, as in `Pooled.names`.
            record: what was measured; plain JSON.

        Raises:
            CwpsError: as `add_stored`.
        """
        stored = channels.store_channels(
            self.layout, params, other, gates, sources, self._models(tuple(pooled))
        )
        return self.add_stored(task, methods.Cwps(), stored, record)

    def add_stored(
        self,
        task: str,
        method: Method,
        stored: Stored,
        record: Mapping[str, Any],
        *,
        compared: bool = False,
    ) -> Version:
        """Stores a new version of a task. No file of an earlier one is touched.

        Args:
            task: its name.
            method: by which it is restored.
            stored: what there is to store of it.
            record: what was measured; plain JSON.
            compared: whether it is a compared method's model: no task of its own.

        Raises:
            CwpsError: a name that cannot be a task's, a method that is not registered, or the pool on disk is
                not the one that was opened.
        """
        check_task_name(task)
        if methods.find(method.name) is not type(method):
            raise CwpsError(f"method {method.name!r} is registered for another class than {type(method)}")
        self._check_unchanged()
        number = 1 + max((one.version for one in self.index.versions if one.task == task), default=0)
        trees = {OWN: stored.own, **({ROWS: stored.rows} if stored.rows else {})}
        size = arrays.payload_bytes(trees)
        if stored.rows and not compared:  # nobody searches what is no task
            trees[SKETCH] = self._trees.sketched(flatten(stored.own), stored.rows)
        folder = self.folder / "tasks" / f"{task}@{number}"
        sha256 = {name: arrays.save(folder / name, tree) for name, tree in trees.items()}
        version = Version(
            self._next_id(),
            task,
            number,
            sha256.get(ROWS, ""),
            sha256[OWN],
            size,
            dict(record),
            method.name,
            dataclasses.asdict(method),
            tuple(self.version(name).id for name in stored.uses),
            compared,
            sha256.get(SKETCH, ""),
        )
        self._replace_index((*self.index.versions, version))
        return version

    def remove(self, task: str) -> None:
        """Removes a task's newest version, or the one named "task@n", with its files.

        Raises:
            CwpsError: not in the pool, other versions borrow its rows or are restored from it, or the pool on
                disk is not the one that was opened.
        """
        version = self.version(task)
        self._check_unchanged()
        dependants = [one.name for one in self.index.versions if version.id in self._trees.needs(one)]
        if dependants:
            raise CwpsError(
                f"{self.folder}: {version.name} cannot be removed: {', '.join(dependants)} "
                f"{'are' if len(dependants) > 1 else 'is'} restored from it; remove "
                f"{'those' if len(dependants) > 1 else 'that'} first"
            )
        self._replace_index(tuple(one for one in self.index.versions if one is not version))
        shutil.rmtree(self.folder / "tasks" / version.name)
        # A later version may get its number, by which what has been read is remembered.
        self._trees, self._ownerships, self._pooled = Trees(self.folder, self.index), {}, None

    def _check_unchanged(self) -> None:
        if Index.read(self.folder) != self.index:
            raise CwpsError(f"{self.folder}: another process has changed this pool; open it again")

    def _replace_index(self, versions: tuple[Version, ...]) -> None:
        dataclasses.replace(self.index, versions=versions).write(self.folder)
        self._trees.index = Index.read(self.folder)

    def _next_id(self) -> int:
        return 1 + max((version.id for version in self.index.versions), default=0)

    def _of_channels(self, task: str) -> Version:
        if not self.shares_channels(task):
            version = self.version(task)
            raise CwpsError(
                f"{self.folder}: {version.name} is stored by {version.method}, not as channels with owners"
            )
        return self.version(task)

    def _params(self, task: str) -> Tree:
        return self.effective(task)["params"]
