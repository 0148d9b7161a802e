"""`Commits`: which files a bucket's copy of a folder has, one object a moment; the highest number counts.

A number is used once: of two writers that want it one finds it taken. So nobody needs a lock, which nobody
could free for a writer that died. Commits of lower numbers are removed.
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
TRIES = 10  # at what changes while it is read

Files = Mapping[str, list[str]]  # {path: [name of its object, SHA-256]}


@dataclasses.dataclass(frozen=True)
class Commit:
    """All files of a folder at one moment.

    Attributes:
        number: of the commit; 0 before the first.
        by: who made it, a text that no other writer has.
        files: their objects.
    """

    number: int = 0
    by: str = ""
    files: Files = dataclasses.field(default_factory=dict)


class Commits:
    """The commits of a bucket's copy, and the right to make the next one.

    Args:
        bucket: where they are.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._by = uuid.uuid4().hex

    def newest(self) -> Commit:
        """Returns the newest commit, one of the number 0 and no files where there is none."""
        for _ in range(TRIES):
            number = self.last()
            found = self._read(number) if number else Commit()
            if found is not None:
                return found
        raise restless(self._bucket)

    def last(self) -> int:
        """Returns the number of the newest commit, 0 where there is none."""
        return max((number_of(name) for name in self._bucket.names(COMMITS)), default=0)

    def made(self, after: Commit, files: Files) -> Commit | None:
        """Makes the commit that comes after another one; None where somebody else has.

        Returns:
            It, or one that an earlier call made here, whose answer was lost: that may have other files.
        """
        number = after.number + 1
        commit = Commit(number, self._by, files)
        created = self._bucket.create(_name(number), json.dumps(dataclasses.asdict(commit)).encode())
        found = commit if created else self._read(number)
        # Somebody else may have made this one and more, and removed it.
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
    """Returns the number in the name of a commit, or of an object the one of its claim."""
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
    """Returns the error of what changes whenever it is read."""
    return CwpsError(f"{bucket.address}: changes faster than it can be read; try again")


def _name(number: int) -> str:
    return f"{COMMITS}/{number:08d}.json"
