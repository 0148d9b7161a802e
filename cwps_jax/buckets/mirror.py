"""`Mirror`: a folder on this machine, and its copy in a bucket, which is complete at any moment.

::

    gs://mine/run/
      commits/00000007.json       the names of all files, and the object of each; the highest number counts
      objects/00000003/<sha256>   the content of a file, under the number of the claim with which it was put
      results.json, report/ ...   copies for people, of files outside of pool/ and saves/; nothing reads them

An object that a commit names is never replaced or appended to. A commit is one object, put after all objects
that it names, under an unused number: if two writers want it, one finds it taken. A writer begins with a
commit of its own, its claim. Earlier writers can make no commit from then on, so their objects that no commit
names are removed. The folder on this machine notes the files that it last had in common with the bucket. If
these are still the bucket's newest, the folder is as new or newer and stays; else the bucket replaces it.
"""

import json
import os
import pathlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from cwps_jax.buckets.bucket import Bucket
from cwps_jax.buckets.commits import (
    COMMITS,
    TRIES,
    Commit,
    Commits,
    Files,
    number_of,
    objects_of,
    restless,
    sha256_of,
)
from cwps_jax.errors import CwpsError
from cwps_jax.files import write_atomically

MARK = ".bucket.json"  # a file in the folder: its bucket's address, and a hash of the files last in common
OBJECTS = "objects"
UNSEEN = {"pool", "saves"}  # folders that people read only by this package
LAST = "index.json"  # the index of a pool, read before the files that it names, and written after them
WRITING = ".orbax-checkpoint-tmp"  # part of the names of files that Orbax has not finished
AT_ONCE = 8  # requests at the same time

A = TypeVar("A")
B = TypeVar("B")


class Mirror:
    """A folder and its copy in a bucket. Several threads may use it.

    Args:
        address: the address of the copy.
        folder: the folder on this machine; it is made if it is missing.
        below: the part of the copy to read, such as "pool"; "" for the whole copy.

    Raises:
        CwpsError: see `Bucket`.
    """

    def __init__(self, address: str, folder: pathlib.Path, below: str = "") -> None:
        self.bucket = Bucket(address)
        self.folder = folder
        self._below = below
        self._commits = Commits(self.bucket)
        self._turn = threading.Lock()
        self._commit = Commit()
        self._claim = 0
        self._hashed: dict[str, tuple[tuple[int, ...], str]] = {}
        self._workers = ThreadPoolExecutor(AT_ONCE)
        self._pusher = ThreadPoolExecutor(1)
        self._soon: list[Future[None]] = []

    def pull(self) -> None:
        """Makes the folder equal to the newest commit, unless it is equal, or changed after it was equal.

        Raises:
            CwpsError: the bucket cannot be read, or is damaged.
        """
        with self._turn:
            self._pull()

    def claim(self) -> None:
        """Pulls, and becomes the only writer; earlier writers are refused from now on.

        Raises:
            CwpsError: the bucket cannot be read or written.
        """
        with self._turn:
            for _ in range(TRIES):
                self._pull()
                if made := self._commits.made(self._commit, self._commit.files):
                    break
            else:
                raise restless(self.bucket)
            self._commit, self._claim = made, made.number
            # Objects with a higher number belong to a later claim than this one.
            left = {name for name in self.bucket.names(OBJECTS) if number_of(name) <= self._claim}
            older = {number_of(name) for name in self.bucket.names(COMMITS)}
            self._commits.remove(number for number in older if number < self._claim)
            self._each(self.bucket.remove, left - objects_of(made.files))

    def push(self) -> None:
        """Makes a commit of the folder as it is, if it has changed; raises errors of `push_soon`.

        Raises:
            CwpsError: the bucket cannot be written, or another process has claimed it; the copy stays
                complete.
        """
        soon, self._soon = self._soon, []
        for one in soon:
            one.result()
        self._push()

    def push_soon(self) -> None:
        """Begins to push while the caller goes on; raises errors of earlier calls."""
        self._soon = [one for one in self._soon if not one.done() or one.result()]
        if all(one.running() for one in self._soon):  # A push that has not begun will see the present files.
            self._soon.append(self._pusher.submit(self._push))

    def _pull(self) -> None:
        for _ in range(TRIES):
            newest = self._commits.newest()
            files = _below(newest.files, self._below)
            missing = "" if self._remembered() == _common(files) else self._brought(files)
            if not missing:
                self._commit = newest
                self._remember(files)
                return
            if self._commits.last() == newest.number:
                raise CwpsError(f"{self.bucket.address}/{missing}: missing; restore it from a copy")
        raise restless(self.bucket)

    def _brought(self, files: Files) -> str:
        """Makes the folder have these files and no others; returns the name of an object that is missing."""
        (self.folder / MARK).unlink(missing_ok=True)
        here = set(self._paths())

        def bring(path: str) -> str:
            (name, sha256), file = files[path], self.folder / path
            if path in here and sha256_of(file.read_bytes()) == sha256:
                return ""
            content = self.bucket.get(name)
            if content is None:
                return name
            if sha256_of(content) != sha256:
                raise CwpsError(f"{self.bucket.address}/{name}: damaged; restore it from a copy")
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, content)
            return ""

        indices = [path for path in files if _name(path) == LAST]
        for paths in (files.keys() - indices, indices):
            if missing := max(self._each(bring, paths), default=""):
                return missing
        for path in here - files.keys():
            (self.folder / path).unlink()
            for folder in pathlib.PurePath(path).parents[:-1]:
                if not any((self.folder / folder).iterdir()):
                    (self.folder / folder).rmdir()
        return ""

    def _push(self) -> None:
        with self._turn:
            files, shown = self._put()
            before = self._commit
            while self._commit.files != files:  # once, or twice if the answer to a try was lost
                made = self._commits.made(self._commit, files)
                if made is None:
                    raise CwpsError(
                        f"{self.bucket.address}: another process writes there since this one began, and "
                        "goes on from the last copy; end one of the two, or give each a --workdir of its own "
                        "and merge their pools by cwps-pool"
                    )
                self._commit = made
            if self._commit is before:
                return
            self._remember(files)
            self._commits.remove(range(before.number, self._commit.number))
            self._each(self.bucket.remove, objects_of(before.files) - objects_of(files))
            self._each(lambda path: self.bucket.put(path, shown[path]), shown)

    def _put(self) -> tuple[Files, dict[str, bytes]]:
        """Puts files that the last commit lacks; returns all files, and the contents of those for people."""
        there = {sha256: name for name, sha256 in self._commit.files.values()}
        shown: dict[str, bytes] = {}

        def put(path: str) -> tuple[str, list[str]]:
            file = self.folder / path
            status = file.stat()
            stamp = (status.st_size, status.st_mtime_ns, status.st_ino)
            before, sha256 = self._hashed.get(path, ((), ""))
            if stamp != before or sha256 not in there:
                content = file.read_bytes()  # read once, so that the hashed content is put
                sha256 = sha256_of(content)
                if sha256 not in there:
                    self.bucket.put(f"{OBJECTS}/{self._claim:08d}/{sha256}", content)
                if not UNSEEN & {*path.split("/")}:
                    shown[path] = content
                self._hashed[path] = (stamp, sha256)
            return path, [there.get(sha256, f"{OBJECTS}/{self._claim:08d}/{sha256}"), sha256]

        for _ in range(TRIES):
            try:
                # Indices first: all files that an index names are there already, and later files do no harm.
                indices = [put(path) for path in self._paths() if _name(path) == LAST]
                rest = [path for path in self._paths() if _name(path) != LAST]
                return dict(sorted([*indices, *self._each(put, rest)])), shown
            except FileNotFoundError:  # removed since it was listed
                continue
        raise restless(self.bucket)

    def _paths(self) -> Iterator[str]:
        """Yields the paths of all files that are meant to stay."""
        for folder, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if _stays(name)]
            for name in names:
                file = pathlib.Path(folder, name)
                if _stays(name) and not file.is_symlink():
                    yield file.relative_to(self.folder).as_posix()

    def _remembered(self) -> str:
        mark = mirrored_from(self.folder)
        return mark["sha256"] if mark and mark["address"] == self.bucket.address else ""

    def _remember(self, files: Files) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        mark = {"address": self.bucket.address, "below": self._below, "sha256": _common(files)}
        write_atomically(self.folder / MARK, json.dumps(mark))

    def _each(self, action: Callable[[A], B], these: Iterable[A]) -> list[B]:
        doing = [self._workers.submit(action, one) for one in these]
        wait(doing)  # also after an error: once it is raised, nothing may be written any longer
        return [one.result() for one in doing]


def mirrored_from(folder: pathlib.Path) -> dict[str, str] | None:
    """Returns the "address" that a folder is a copy of, and the part "below" it; None if it is not a copy."""
    mark = folder / MARK
    return json.loads(mark.read_text()) if mark.exists() else None


def _stays(name: str) -> bool:
    """Returns whether a file or folder is meant to stay, and not a lock or an unfinished change."""
    return (name[0] != "." or name == ".zarray") and WRITING not in name


def _below(files: Files, folder: str) -> Files:
    inside = f"{folder}/" if folder else ""
    return {path.removeprefix(inside): files[path] for path in files if path.startswith(inside)}


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _common(files: Files) -> str:
    return sha256_of(json.dumps({path: files[path][1] for path in sorted(files)}).encode())
