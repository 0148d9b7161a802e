"""`Writable`: changes of a pool's folder, which are always seen and left complete.

A writer waits for its turn, reads the index again, writes new trees into a new folder, gives that its name,
replaces the index, and removes folders that the index no longer names. Until the index is replaced nothing
has changed, and after it everything has. No index names the files that a killed writer leaves, and the next
writer or `Pool.compact` removes them.
"""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from cwps_jax.core import accounting
from cwps_jax.core.coding import Codes
from cwps_jax.core.trees import Flat, Tree, flatten
from cwps_jax.errors import CwpsError
from cwps_jax.methods.channels import ownership
from cwps_jax.methods.method import Stored
from cwps_jax.store import arrays
from cwps_jax.store.contents import Contents
from cwps_jax.store.fetched import check_writable, fetched
from cwps_jax.store.index import Index, Version
from cwps_jax.store.lock import locked
from cwps_jax.store.trees import OWN, ROWS, SKETCH, TASKS, Trees

PARTIAL = ".partial-"  # begins the names of folders that are being written
SYSTEM = "os_error_code="
SHOWN = 200  # characters of an error, whose end says why


class Writable(Contents):
    """A pool's contents, with the steps of every change."""

    def refresh(self) -> None:
        """Reads the index again, with all changes by other processes.

        Raises:
            CwpsError: there is another pool in this folder now.
        """
        fetched(self.folder)
        self._see(self._fresh())

    @contextlib.contextmanager
    def _turn(self) -> Iterator[Index]:
        """Gives the index as it is on the disk, which no other process changes while the block runs."""
        with writing(self.folder):
            yield self._fresh()

    def _fresh(self) -> Index:
        index = Index.read(self.folder)
        if index.pretrained_sha256 != self.index.pretrained_sha256:
            raise CwpsError(f"{self.folder}: another pool is in this folder now; open it again")
        return index

    def _see(self, index: Index) -> None:
        """Uses another index. Numbers are never used again, so trees that have been read stay valid."""
        if self.index.by_id.keys() - index.by_id.keys():
            # Files that are removed stay on the disk as long as they are mapped.
            self._trees, self._ownerships, self._pooled = Trees(self.folder, index), {}, None
        self._trees.index = index

    def _written(self, index: Index, version: Version, stored: Stored) -> Version:
        """Writes a version's trees into its folder, and returns it with that folder and all hashes.

        Args:
            index: the pool's index.
            version: the version, without its trees' hashes, bytes and ratio.
            stored: its trees.
        """
        trees: dict[str, Tree] = {OWN: stored.own, **({ROWS: stored.rows} if stored.rows else {})}
        size = arrays.payload_bytes(trees)
        own = flatten(stored.own)
        few = any(isinstance(leaf, Codes) and leaf.bits < 8 for leaf in stored.rows.values())
        # Nobody searches what is no task, and a sketch of few bits would be larger than what it is of.
        if stored.rows and not version.compared and not few:
            trees[SKETCH] = self._trees.sketched(own, self._trees.decoded_rows(lambda: own, stored.rows))
        taken = {one.folder for one in index.versions}
        folder = version.name if version.name not in taken else f"{version.name}.{version.id}"
        with partial(self.folder / TASKS) as new:
            sha256 = {name: arrays.save(new / name, tree) for name, tree in trees.items()}
            placed(new, self.folder / TASKS / folder)
        return dataclasses.replace(
            version,
            rows_sha256=sha256.get(ROWS, ""),
            own_sha256=sha256[OWN],
            sketch_sha256=sha256.get(SKETCH, ""),
            bytes=size,
            folder=folder,
            ratio=accounting.count_stored(self.layout, own, stored.rows).ratio,
            owned=self._owned(own, version.id) if stored.rows else None,
        )

    def _owned(self, own: Flat, number: int) -> dict[str, int]:
        found = ownership(self.layout, own, number)
        owned = accounting.owned(self.layout, {path: owner for path, (owner, _) in found.items()})
        return {str(owner): count for owner, count in owned.items()}  # a JSON file has no other keys

    def _replace_index(self, index: Index, versions: tuple[Version, ...]) -> None:
        """Replaces the index by one of other versions, and removes the folders of those that are gone."""
        next_id = max((index.next_id, *(1 + version.id for version in versions)))
        new = dataclasses.replace(index, versions=versions, next_id=next_id)
        new.write(self.folder)
        self._see(Index.read(self.folder))
        for folder in {one.folder for one in index.versions} - {one.folder for one in versions}:
            shutil.rmtree(self.folder / TASKS / folder)


@contextlib.contextmanager
def writing(folder: pathlib.Path) -> Iterator[None]:
    """Waits for the turn to write a pool's folder, and holds it while its block runs.

    Raises:
        CwpsError: another process has its turn for too long, or the folder cannot be locked or written.
    """
    check_writable(folder)
    with _readable_errors(folder), locked(folder / ".lock", "this pool is being written"):
        # Whoever wrote these is dead: it had this lock.
        for place, name in ((folder, f"{PARTIAL}*"), (folder / TASKS, f"{PARTIAL}*")):
            for left in place.glob(name):
                shutil.rmtree(left)
        for file in folder.glob(".index.json.*"):
            file.unlink()
        yield


@contextlib.contextmanager
def _readable_errors(folder: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        # What Orbax raises for a full disk is TensorStore's, with the system's error in its text.
        if not isinstance(error, OSError) and SYSTEM not in str(error):
            raise
        line = " ".join(str(error).split())[-SHOWN:]
        raise CwpsError(
            f"{folder}: cannot be written ({line}); make room there, or let it be written to: what the pool "
            "holds is whole"
        ) from error


@contextlib.contextmanager
def partial(within: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives the path of a folder to be written and `placed`; a folder that is not placed is removed."""
    within.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{PARTIAL}{os.getpid()}-", dir=within) as name:
        yield pathlib.Path(name) / "new"


def placed(new: pathlib.Path, folder: pathlib.Path) -> None:
    """Gives a written folder its name; a folder that a dead writer has left under it is replaced."""
    if folder.exists():
        shutil.rmtree(folder)
    new.rename(folder)
    descriptor = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # the name is on the disk before an index refers to it
    finally:
        os.close(descriptor)
