"""`Commits`: the lists of the files that a bucket's copy of a folder has; the highest number counts.

Each commit is one object, and its number is used once: if two writers want the same number, one of them finds
it taken. So no lock is needed, which nobody could free for a writer that died. Older commits are removed.
"""

import dataclasses
import hashlib
import json
import re
import uuid
from collections.abc import Iterable, Mapping

from cwps_jax.buckets.bucket import Bucket
from cwps_jax.errors import CwpsError

COMMITS = "commits"
TRIES = 10  # attempts to read files that change meanwhile

Files = Mapping[str, list[str]]  # {path: [name of its object, SHA-256]}


@dataclasses.dataclass(frozen=True)
class Commit:
    """All files of a folder at one moment.

    Attributes:
        number: the commit's number; 0 before the first commit.
        by: the name of the writer that made it, which no other writer has.
        files: the object of each file.
    """

    number: int = 0
    by: str = ""
    files: Files = dataclasses.field(default_factory=dict)


class Commits:
    """The commits of a bucket's copy, and the right to make the next one.

    Args:
        bucket: the bucket that has the commits.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._by = uuid.uuid4().hex

    def newest(self) -> Commit:
        """Returns the newest commit; if there is none, a commit with the number 0 and without files."""
        for _ in range(TRIES):
            number = self.last()
            found = self._read(number) if number else Commit()
            if found is not None:
                return found
        raise restless(self._bucket)

    def last(self) -> int:
        """Returns the number of the newest commit, or 0 if there is none."""
        return max((number_of(name) for name in self._bucket.names(COMMITS)), default=0)

    def made(self, after: Commit, files: Files) -> Commit | None:
        """Makes the commit that follows another one.

        Returns:
            The new commit; or, if an earlier call of this writer made it and the answer was lost, that
            commit, which may have other files; or None if another writer has made it.
        """
        number = after.number + 1
        commit = Commit(number, self._by, files)
        created = self._bucket.create(_name(number), json.dumps(dataclasses.asdict(commit)).encode())
        found = commit if created else self._read(number)
        # Another writer may have made this commit and later ones, and removed it.
        return found if found and found.by == self._by and self.last() == number else None

    def remove(self, numbers: Iterable[int]) -> None:
        """Removes the commits of these numbers."""
        for number in numbers:
            self._bucket.remove(_name(number))

    def _read(self, number: int) -> Commit | None:
        content = self._bucket.get(_name(number))
        if content is None:
            return None
        where = f"{self._bucket.address}/{_name(number)}"
        try:
            found = Commit(**json.loads(content))
        except (ValueError, TypeError) as error:
            raise CwpsError(f"{where}: not written by cwps_jax, or damaged; name another folder") from error
        for path in found.files:
            if {"", ".", ".."} & {*path.split("/")} or "\\" in path:
                raise CwpsError(f"{where}: {path!r} would lead out of the folder; nothing was read")
        return found


def number_of(name: str) -> int:
    """Returns the number in a name: a commit's own, or that of the claim under which an object was put."""
    found = re.match(r"[a-z]+/(\d{8})[./]", name)
    if not found:
        raise CwpsError(f"{name}: not written by cwps_jax; name a folder of the bucket that is for it alone")
    return int(found[1])


def objects_of(files: Files) -> set[str]:
    """Returns the names of the objects that files have."""
    return {name for name, _ in files.values()}


def sha256_of(content: bytes) -> str:
    """Returns the SHA-256 of a file's content."""
    return hashlib.sha256(content).hexdigest()


def restless(bucket: Bucket) -> CwpsError:
    """Returns the error for a bucket that changes whenever it is read."""
    return CwpsError(f"{bucket.address}: changes faster than it can be read; try again")


def _name(number: int) -> str:
    return f"{COMMITS}/{number:08d}.json"
