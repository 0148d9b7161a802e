"""`Trees`: the trees in a pool's folders, each read on demand, once per process."""

import functools
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from cwps_jax.core.heads import without_head
from cwps_jax.core.trees import Tree, flatten, unflatten, unite
from cwps_jax.errors import CwpsError
from cwps_jax.methods.channels import opened
from cwps_jax.methods.method import Method, Restoring
from cwps_jax.search.models import model_rows
from cwps_jax.search.sketch import sketched
from cwps_jax.store import arrays
from cwps_jax.store.coded import DecodedOwn, decoded_rows
from cwps_jax.store.index import Index, Version

PRETRAINED = "pretrained"
TASKS = "tasks"  # the folder of the versions' folders
ROWS, SKETCH, OWN = "rows", "sketch", "own"  # the folders of a version's trees


class Trees:
    """The trees that an index names. Hashes are compared before anything is used; files are mapped, not held.

    Args:
        folder: the pool's.
        index: the pool's index.
    """

    def __init__(self, folder: pathlib.Path, index: Index) -> None:
        self.folder = folder
        self.index = index
        self._loaded: dict[Any, Any] = {}

    def rows(self, identity: int) -> Mapping[str, np.ndarray]:
        """Returns the rows that an owner stores, {path of a leaf: (rows, fan-in)}; none of one without."""
        if identity == 0:
            return self._once((0, ROWS), lambda: model_rows(self.index.layout, self.pretrained()))
        version = self.index.by_id[identity]
        if not version.rows_sha256:
            return {}
        stored = lambda: self._load(version, ROWS, version.rows_sha256)
        return self._once((identity, ROWS), lambda: self.decoded_rows(lambda: self.own(version), stored()))

    def decoded_rows(
        self, own: Callable[[], Mapping[str, Any]], rows: Mapping[str, Any]
    ) -> Mapping[str, np.ndarray]:
        """Returns rows as arrays, or as objects that decode them: see `store.coded`."""
        return decoded_rows(self.index.layout, own, rows, self.pretrained)

    def sketch(self, identity: int) -> Mapping[str, Any]:
        """Returns the sketch of an owner's rows; it is made here if none was written."""
        version = self.index.by_id[identity]

        def read() -> Mapping[str, Any]:
            if not version.sketch_sha256:
                return self.sketched(self.own(version), self.rows(identity))
            return self._load(version, SKETCH, version.sketch_sha256)

        return self._once((identity, SKETCH), read)

    def sketched(
        self, own: Mapping[str, np.ndarray], rows: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Returns the sketch of rows.

        Args:
            own: {path: array}, with the masks that say which channels the rows are.
            rows: {path of a leaf: (rows, fan-in)}.
        """
        layout = self.index.layout
        channels = {layer.path: opened(layer, own) for layer in layout.layers}
        return sketched(layout, rows, channels, self.rows(0))

    def own(self, version: Version) -> DecodedOwn:
        """Returns all arrays of a version's own except its rows; `leaves` has them in the stored form."""
        stored = lambda: self._load(version, OWN, version.own_sha256)
        return self._once((version.id, OWN), lambda: self.decoded_own(stored()))

    def decoded_own(self, own: Mapping[str, Any]) -> DecodedOwn:
        """Returns a version's own tree, flat, with decoded arrays."""
        return DecodedOwn(own, self.before)

    def before(self) -> dict[str, Any]:
        """Returns the pre-trained model's variables without the head's parameters, a flat dict."""
        head = {f"params/{path}" for path in self.index.layout.head_paths}
        read = lambda: {path: leaf for path, leaf in flatten(self.shared()).items() if path not in head}
        return self._once("before", read)

    def shared(self) -> dict[str, Any]:
        """Returns the pre-trained model's variables."""
        sha256 = self.index.pretrained_sha256
        return self._once(PRETRAINED, lambda: unflatten(arrays.load(self.folder / PRETRAINED, sha256)))

    def pretrained(self) -> dict[str, Any]:
        """Returns the pre-trained model's leaves, a flat dict."""
        return self._once("params", lambda: flatten(self.shared()["params"]))

    def needs(self, version: Version) -> set[int]:
        """Returns the numbers of the other versions that one needs to be restored."""
        return {*version.uses, *self.owners(version)}

    def owners(self, version: Version) -> set[int]:
        """Returns the numbers of the other versions whose rows one borrows."""
        return owners(self.own(version)) - {0, version.id}

    def restored(
        self,
        method: Method,
        identity: int,
        own: Mapping[str, Any],
        rows: Mapping[str, Any],
        uses: tuple[Version, ...],
        effective: Callable[[str], Tree],
    ) -> dict[str, Any]:
        """Returns a model's variables: what the method restores, and the other collections.

        The other collections are the task's own if it stores any, otherwise the pre-trained model's.

        Args:
            method: the method by which it is stored.
            identity: its number, or the next one if it is not stored yet.
            own, rows: its stored trees, flat; arrays or codes.
            uses: the other versions that it needs, besides the rows' owners.
            effective: a version's name to its variables.
        """
        arrays_of_own, its_rows = self.decoded_own(own), self.decoded_rows(lambda: own, rows)
        view = Restoring(
            self.index.layout,
            identity,
            arrays_of_own,
            self.pretrained(),
            lambda owner: its_rows if owner == identity else self.rows(owner),
            tuple(functools.partial(_params, effective, version.name) for version in uses),
            tuple(functools.partial(self.own, version) for version in uses),
        )
        other = {key: tree for key, tree in self.shared().items() if key != "params"}
        if mine := unflatten(view.under("other")):  # not even a leaf of another task's head
            other = unite(without_head(view.layout, other), mine)
        return {**other, **method.restore(view)}

    def _load(self, version: Version, tree: str, sha256: str) -> arrays.Leaves:
        try:
            return arrays.load(self.folder / TASKS / version.folder / tree, sha256)
        except (CwpsError, FileNotFoundError) as error:
            # Damage, unless another process has removed it since.
            if version.id in Index.read(self.folder).by_id:
                raise
            raise CwpsError(
                f"{self.folder}: {version.name} was removed after this pool was opened; open it again"
            ) from error

    def forget(self, identities: Iterable[int]) -> None:
        """Lets go of versions' files, each of which is an open one as long as it is mapped."""
        for key in [(identity, tree) for identity in identities for tree in (ROWS, OWN, SKETCH)]:
            self._loaded.pop(key, None)

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        """Returns the first result of `make` for this key; two threads at once may both call it."""
        return self._loaded[key] if key in self._loaded else self._loaded.setdefault(key, make())


def _params(effective: Callable[[str], Tree], name: str) -> Tree:
    return effective(name)["params"]


def owners(own: Mapping[str, np.ndarray]) -> set[int]:
    """Returns the numbers of the owners that a version's own tree, flat, names."""
    named = (leaf for path, leaf in own.items() if path.startswith("owner/"))
    return {int(one) for leaf in named for one in np.unique(leaf)}
