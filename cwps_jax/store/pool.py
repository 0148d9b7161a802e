"""`Pool`: the stored models, of which every new task takes channels and to which it adds its own.

::

    pool/
      index.json            what there is; replaced atomically, after everything it names is written
      pretrained/           the shared tree: the pre-trained model, whole
      tasks/birds@1/        three trees a version:
        rows/                 what later versions borrow
          <leaf>                the active channels, channel-major (active, fan-in)
        sketch/               the same in 8 bits, what a search looks at first: `cwps_jax.search.sketch`
        own/                  the rest: ownership, gates and counts are known without the rows
          masks/<kernel>        uint8, one bit a channel, packed
          owner/<kernel>        for each inactive channel, the id of the version that stores it
          row/<kernel>          ... and its row there (for the pre-trained model, the channel)
          params/<leaf>         norms, other private leaves, and the head, as they are
          other/<collection>    norm statistics

Ownership is resolved when a version is written, to the version that really stores the row, so a look-up
never follows a chain. What is written is never changed. How a tree is stored: `cwps_jax.store.arrays`.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from cwps_jax.config import check_task_name
from cwps_jax.core import accounting, packing
from cwps_jax.core.channels import Layer, Layout
from cwps_jax.core.trees import Tree, flatten, unflatten
from cwps_jax.errors import CwpsError
from cwps_jax.methods.method import Pooled
from cwps_jax.search.composite import Source
from cwps_jax.search.models import StoredModels, gather, model_rows
from cwps_jax.search.sketch import sketched
from cwps_jax.store import arrays
from cwps_jax.store.index import Index, Version

PRETRAINED = "pretrained"
ROWS, SKETCH, OWN = "rows", "sketch", "own"  # the folders of a version's trees

Ownership = dict[str, tuple[np.ndarray, np.ndarray]]


class Pool:
    """The models stored in one folder. Open one with `Pool.open`, make one with `Pool.create`.

    Attributes:
        folder: where it is.
        index: what it holds.
    """

    def __init__(self, folder: pathlib.Path, index: Index) -> None:
        self.folder = folder
        self.index = index
        self._loaded: dict[Any, Any] = {}  # hashes compared once; the files are mapped, not held
        self._ownerships: dict[int, Ownership] = {}
        self._pooled: tuple[Any, Pooled] | None = None  # the newest alone: every method of a task asks for it

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
    def layout(self) -> Layout:
        """The pre-trained model's layout."""
        return self.index.layout

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the stored tasks, oldest first."""
        return tuple(dict.fromkeys(version.task for version in self.index.versions))

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
            return self._shared()
        version = self.version(task)
        own, ownership = self._own(version), self.ownership(version)
        owner, row = ({path: pair[one] for path, pair in ownership.items()} for one in (0, 1))
        shared = gather(self.layout, owner, row, self._rows, self._pretrained())
        return {"params": unflatten({**own.under("params"), **shared}), **unflatten(own.under("other"))}

    def gates(self, task: str) -> dict[str, np.ndarray]:
        """Returns a task's hard gates, a nested dict of boolean arrays."""
        own = self._own(self.version(task))
        return unflatten({layer.path: _gate(layer, own) for layer in self.layout.layers})

    def ownership(self, version: Version) -> Ownership:
        """Returns {path of a kernel: (id of each channel's owner, its row there)}."""
        if version.id in self._ownerships:
            return self._ownerships[version.id]
        own, found = self._own(version), {}
        for layer in self.layout.layers:
            active = _gate(layer, own).ravel()
            owner = np.full(layer.channels, version.id, np.int32)
            row = np.cumsum(active, dtype=np.int32) - 1
            owner[~active], row[~active] = own[f"owner/{layer.path}"], own[f"row/{layer.path}"]
            found[layer.path] = owner, row
        return self._ownerships.setdefault(version.id, found)

    def relation(self, task: str) -> dict[str, float]:
        """Returns the share of a task's channels that each owner stores, weighted by parameters."""
        ownership = self.ownership(self.version(task))
        names = [PRETRAINED, *self.tasks]
        number = {name: place for place, name in enumerate(names)}
        place = np.zeros(1 + max(self.index.by_id), np.int64)
        for version in self.index.versions:
            place[version.id] = number[version.task]
        owners = {path: place[owner] for path, (owner, _) in ownership.items()}
        return accounting.relation(self.layout, owners, names)

    def count(self, task: str) -> accounting.Count:
        """Counts what a task's version keeps, without reading its rows."""
        own = self._own(self.version(task)).under("params")
        counted = accounting.count(self.layout, self.gates(task))
        return dataclasses.replace(counted, head=sum(leaf.size for leaf in own.values()) - counted.private)

    def pooled(self, without: str | None = None) -> Pooled:
        """Returns the pre-trained model and every task's newest one, oldest first, as rows that are stored.

        Args:
            without: a task to leave out.
        """
        names = (PRETRAINED, *(task for task in self.tasks if task != without))
        stored = tuple(version.id for version in self.index.versions), names
        if self._pooled is None or self._pooled[0] != stored:
            self._pooled = stored, Pooled(self._models(names), names)
        return self._pooled[1]

    def _models(self, names: tuple[str, ...]) -> StoredModels:
        # Two threads: one waits for files; more would wait for Python's lock.
        with ThreadPoolExecutor(2) as readers:
            ownerships = list(readers.map(self.ownership, map(self.version, names[1:])))
        owner, row = {}, {}
        for layer in self.layout.layers:
            own = np.zeros(layer.channels, np.int32), np.arange(layer.channels, dtype=np.int32)
            pairs = [own, *(ownership[layer.path] for ownership in ownerships)]
            owner[layer.path], row[layer.path] = (np.stack(one) for one in zip(*pairs, strict=True))
        return StoredModels(owner, row, self._rows, self._sketch, self._pretrained)

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
        """Stores a new version of a task. No file of an earlier one is touched.

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
            CwpsError: a name that cannot be a task's, or the pool on disk is not the one that was opened.
        """
        check_task_name(task)
        if Index.read(self.folder) != self.index:
            raise CwpsError(f"{self.folder}: another process has changed this pool; open it again")
        number = 1 + sum(version.task == task for version in self.index.versions)
        identity = 1 + max((version.id for version in self.index.versions), default=0)
        trees = self._pack(params, other, gates, sources, pooled)
        folder = self.folder / "tasks" / f"{task}@{number}"
        rows_sha256, own_sha256, sketch_sha256 = (
            arrays.save(folder / name, trees[name]) for name in (ROWS, OWN, SKETCH)
        )
        size = arrays.payload_bytes(trees)
        version = Version(identity, task, number, rows_sha256, own_sha256, size, dict(record), sketch_sha256)
        index = dataclasses.replace(self.index, versions=(*self.index.versions, version))
        index.write(self.folder)
        self.index = Index.read(self.folder)
        return version

    def _pack(self, params, other, gates, sources, pooled) -> dict[str, Any]:
        flat_gates, leaves = (
            {path: np.asarray(leaf) for path, leaf in flatten(tree).items()} for tree in (gates, params)
        )
        ownerships = [self.ownership(self.version(name)) if name != PRETRAINED else None for name in pooled]
        owners, rows = {}, {}
        for layer in self.layout.layers:
            closed = np.flatnonzero(~flat_gates[layer.path].ravel())
            source = sources.get(layer.path)
            model = np.asarray(source.model)[closed] if source else np.zeros(len(closed), np.int64)
            channel = np.asarray(source.channel)[closed] if source else closed
            owner, row = np.zeros(len(closed), np.int64), channel.astype(np.int64)
            for number in np.unique(model[model > 0]):
                stored_owner, stored_row = ownerships[number][layer.path]
                taken = model == number
                owner[taken], row[taken] = stored_owner[channel[taken]], stored_row[channel[taken]]
            owners[layer.path], rows[layer.path] = _smallest(owner), _smallest(row)
        layer_paths = set(self.layout.layer_paths)
        bits = {path: np.packbits(gate.ravel()) for path, gate in flat_gates.items()}
        own = {
            "masks": unflatten(bits),
            "owner": unflatten(owners),
            "row": unflatten(rows),
            "params": unflatten({path: leaf for path, leaf in leaves.items() if path not in layer_paths}),
            "other": dict(other),
        }
        packed = packing.pack(self.layout, unflatten(leaves), unflatten(flat_gates))
        active = {layer.path: np.flatnonzero(flat_gates[layer.path]) for layer in self.layout.layers}
        return {ROWS: packed, SKETCH: sketched(self.layout, packed, active, self._rows(0)), OWN: own}

    def _rows(self, identity: int) -> Mapping[str, np.ndarray]:
        """Returns the rows that an owner stores, {path of a leaf: (rows, fan-in)}."""
        if identity == 0:
            return self._once((0, ROWS), lambda: model_rows(self.layout, self._pretrained()))
        version = self.index.by_id[identity]
        folder = self.folder / "tasks" / version.name / ROWS
        return self._once((version.id, ROWS), lambda: arrays.load(folder, version.rows_sha256))

    def _sketch(self, identity: int) -> Mapping[str, np.ndarray]:
        """Returns the sketch of an owner's rows; it is made here where an earlier release wrote none."""
        version = self.index.by_id[identity]

        def read() -> Mapping[str, np.ndarray]:
            if version.sketch_sha256:
                return arrays.load(self.folder / "tasks" / version.name / SKETCH, version.sketch_sha256)
            own, layers = self._own(version), self.layout.layers
            active = {layer.path: np.flatnonzero(_gate(layer, own)) for layer in layers}
            return sketched(self.layout, self._rows(identity), active, self._rows(0))

        return self._once((identity, SKETCH), read)

    def _own(self, version: Version) -> arrays.Leaves:
        folder = self.folder / "tasks" / version.name / OWN
        return self._once((version.id, OWN), lambda: arrays.load(folder, version.own_sha256))

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        """Returns what `make` gave for this key first; two threads at once may both make it."""
        return self._loaded[key] if key in self._loaded else self._loaded.setdefault(key, make())

    def _pretrained(self) -> dict[str, Any]:
        return flatten(self._shared()["params"])

    def _shared(self) -> dict[str, Any]:
        sha256 = self.index.pretrained_sha256
        return self._once(PRETRAINED, lambda: unflatten(arrays.load(self.folder / PRETRAINED, sha256)))


def _gate(layer: Layer, own: arrays.Leaves) -> np.ndarray:
    bits = np.unpackbits(own[f"masks/{layer.path}"], count=layer.channels)
    return bits.astype(bool).reshape(layer.gate_shape)


def _smallest(values: np.ndarray) -> np.ndarray:
    """Returns the values in the smallest unsigned type that holds them."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))
