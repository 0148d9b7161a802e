"""`Pool`: the stored models, from which every new task takes channels and to which it adds its own.

::

    pool/
      index.json            what there is; replaced atomically, after everything it names is written
      .lock                 whoever holds it writes: `cwps_jax.store.lock`
      .learning/birds       whoever holds it learns that task
      pretrained/           the shared tree: the pre-trained model, whole
      tasks/birds@1/        the trees of a version, by the name that it had when it was stored:
        own/                  all that is its own but rows, in its method's form: see `methods.channels`
        rows/                 what later versions borrow, where the method has such
        sketch/               the same in 8 bits, what a search looks at first: `cwps_jax.search.sketch`

A written tree is never changed. How a tree is stored: `cwps_jax.store.arrays`; how the folder is changed by
several processes, of which any may be killed: `cwps_jax.store.writing`.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from cwps_jax import distributed, methods
from cwps_jax.core.channels import Layout
from cwps_jax.core.trees import Tree, flatten
from cwps_jax.errors import CwpsError
from cwps_jax.methods import channels
from cwps_jax.methods.method import Method, Stored
from cwps_jax.search.composite import Source
from cwps_jax.settings import check_task_name
from cwps_jax.store import arrays, together
from cwps_jax.store.fetched import check_writable, fetched
from cwps_jax.store.index import Index, Version
from cwps_jax.store.lifecycle import Lifecycle
from cwps_jax.store.listing import listed_html
from cwps_jax.store.lock import locked
from cwps_jax.store.trees import PRETRAINED, owners
from cwps_jax.store.writing import partial, placed, writing


class Pool(Lifecycle):
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
        """Makes a pool that holds only the pre-trained model.

        Args:
            folder: a folder without a pool.
            variables: the pre-trained model's variables: {"params" and its other collections: nested dict of
                float32 arrays}.
            layout: its layout, see `channel_layout`; the head may have another size.
            backbone: the backbone's name, by which another one is refused later.
            record: the origin of the model; plain JSON.

        Raises:
            CwpsError: the folder has a pool already, or the variables are not those of the layout.
        """
        folder = pathlib.Path(folder)
        shapes = {path: tuple(leaf.shape) for path, leaf in flatten(variables["params"]).items()}
        head = tuple((path, shapes.pop(path)) for path in layout.head_paths if path in shapes)
        wanted = layout.backbone_shapes
        if shapes != wanted:
            path = min(path for path in shapes.keys() | wanted.keys() if shapes.get(path) != wanted.get(path))
            raise CwpsError(
                f"{path}: {shapes.get(path, 'missing')} in the variables, {wanted.get(path, 'missing')} in "
                "the layout; give the layout of this model"
            )
        together.agree_on(PRETRAINED, variables)

        def write() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            with writing(folder):
                if (folder / "index.json").exists():
                    raise CwpsError(f"{folder}: there is a pool already; open it, or name another folder")
                with partial(folder) as new:
                    sha256 = arrays.save(new, variables)
                    placed(new, folder / PRETRAINED)
                stored = dataclasses.replace(layout, head=head)
                Index(backbone, stored, sha256, dict(record or {})).write(folder)

        together.by_first("the pool is made", folder, write)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | pathlib.Path) -> "Pool":
        """Opens a pool.

        Args:
            folder: the pool's folder, or the gs:// or s3:// address of one in a run's workdir, which is
                fetched and can only be read.

        Raises:
            CwpsError: there is no pool.
        """
        folder = fetched(folder)
        return cls(folder, Index.read(folder))

    def __init__(self, folder: pathlib.Path, index: Index) -> None:
        super().__init__(folder, index)
        self._learning: set[str] = set()

    def _repr_html_(self) -> str:
        """Returns the table of the newest tasks that a notebook shows."""
        return listed_html(self.folder, self.index, self.tasks)

    @contextlib.contextmanager
    def learning(self, task: str) -> Iterator[None]:
        """Reserves a task's name while its block runs, and reads the index again before that.

        Use it before training a task: a second run with this name is then refused before its first step, and
        not after its last. Other tasks can be learned and stored meanwhile. When a run dies, its name is free
        again.

        Args:
            task: its name.

        Raises:
            CwpsError: the name is not allowed, or another process or thread is learning this task.
        """
        check_task_name(task)
        check_writable(self.folder)
        names = self.folder / ".learning"
        if task in self._learning:  # by whoever calls this: `learn_task` asks for it, too
            yield
            return
        with contextlib.ExitStack() as held:

            def lock() -> None:
                names.mkdir(exist_ok=True)
                held.enter_context(locked(names / task, f"{task!r} is being learned", seconds=0))

            together.by_first(f"{task} is locked", self.folder, lock)
            self._learning.add(task)
            held.callback(self._learning.remove, task)
            self.refresh()
            yield

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
            params: nested dict, the plain backbone's mixed parameters.
            other: its other collections, such as batch_stats.
            gates: nested dict of hard gates; open channels are stored.
            sources: {path of a kernel: `Source` of its closed channels}; those of a missing layer are the
                pre-trained model's at the same index.
            pooled: names of the models to which `sources` refers, as in `Pooled.names`.
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

        Other processes may have changed the pool since it was opened or last written here: their other tasks
        stay, and this object knows them from now on.

        Args:
            task: its name.
            method: by which it is restored.
            stored: what there is to store of it.
            record: what was measured; plain JSON.
            compared: whether it is a compared method's model, and not a task.

        Raises:
            CwpsError: the name is not allowed, or belongs to a compared model and this is a task, or the
                other way round; the method is not registered; another process has stored this task since, or
                has removed a version that it needs; or another process does not end writing.
        """
        check_task_name(task)
        if methods.find(method.name) is not type(method):
            raise CwpsError(f"method {method.name!r} is registered for another class than {type(method)}")
        together.agree_on(task, stored.own, stored.rows)

        def store() -> None:
            self._store(task, method, stored, record, compared)

        together.by_first(f"{task} is stored", self.folder, store)
        if not distributed.first():
            self.refresh()
        return self.version(task)

    def _store(
        self, task: str, method: Method, stored: Stored, record: Mapping[str, Any], compared: bool
    ) -> None:
        uses = tuple(self.version(name).id for name in stored.uses)
        with self._turn() as index:
            self._check_current(index, task, method, {*uses, *owners(flatten(stored.own))} - {0}, compared)
            number = 1 + max((one.version for one in index.versions if one.task == task), default=0)
            version = Version(
                index.next_id,
                task,
                number,
                "",
                "",
                0,
                dict(record),
                method.name,
                dataclasses.asdict(method),
                uses,
                compared,
            )
            version = self._written(index, version, stored)
            self._replace_index(index, (*index.versions, version))

    def _check_current(
        self, index: Index, task: str, method: Method, needed: set[int], compared: bool
    ) -> None:
        """Raises CwpsError if changes by other processes forbid storing a task."""
        if any(one.task == task and one.compared != compared for one in index.versions):
            raise CwpsError(f"{self.folder}: {task!r} is a task here and a compared model; rename the task")
        new = [one for one in index.versions if one.id not in self.index.by_id]
        known = {one.id for one in self.index.versions if one.task == task}
        theirs = [one.name for one in index.versions if one.task == task and one.id not in known]
        if theirs:
            raise CwpsError(
                f"{self.folder}: another process has stored {theirs[-1]} since this pool was opened; nothing "
                "was written: choose another name, or open the pool again to add a version"
            )
        gone = [
            self.index.by_id[one].name if one in self.index.by_id else f"version number {one}"
            for one in sorted(needed - index.by_id.keys())
        ]
        if gone:
            raise CwpsError(
                f"{self.folder}: {task!r} is restored from {', '.join(gone)}, removed by another process "
                "since this pool was opened; open it again and learn the task again"
            )
        mine = [one.name for one in new if one.method == method.name] if method.uses_own_tasks else []
        if mine:
            raise CwpsError(
                f"{self.folder}: another process has stored {', '.join(mine)} since this pool was opened, "
                f"and {method.name} builds on all of its tasks; open it again and learn {task!r} again"
            )
