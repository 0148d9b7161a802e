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
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from cwps_jax import methods
from cwps_jax.core.channels import Layout
from cwps_jax.core.trees import Tree, flatten
from cwps_jax.errors import CwpsError
from cwps_jax.methods import channels
from cwps_jax.methods.method import Method, Stored
from cwps_jax.search.composite import Source
from cwps_jax.settings import check_task_name
from cwps_jax.store import arrays
from cwps_jax.store.contents import Contents
from cwps_jax.store.index import Index, Version
from cwps_jax.store.trees import OWN, PRETRAINED, ROWS, SKETCH, Trees


class Pool(Contents):
    """The models stored in one folder. Open one with `Pool.open`, make one with `Pool.create`."""

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
            CwpsError: a name that cannot be a task's, a method that is not registered, the name of a compared
                model for a task or the other way round, or the pool on disk is not the one that was opened.
        """
        check_task_name(task)
        if methods.find(method.name) is not type(method):
            raise CwpsError(f"method {method.name!r} is registered for another class than {type(method)}")
        if any(one.task == task and one.compared != compared for one in self.index.versions):
            raise CwpsError(f"{self.folder}: {task!r} is a task here and a compared model; rename the task")
        self._check_unchanged()
        number = 1 + max((one.version for one in self.index.versions if one.task == task), default=0)
        trees = {OWN: stored.own, **({ROWS: stored.rows} if stored.rows else {})}
        size = arrays.payload_bytes(trees)
        if stored.rows and not compared:  # nobody searches what is no task
            trees[SKETCH] = self._trees.sketched(flatten(stored.own), stored.rows)
        folder = self.folder / "tasks" / f"{task}@{number}"
        sha256 = {name: arrays.save(folder / name, tree) for name, tree in trees.items()}
        version = Version(
            self.index.next_id,
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
