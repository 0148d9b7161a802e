"""Places of image files: a folder or a zip archive, listed and read in the same way, by several threads.

Paths are relative to a place, with "/"; "" is its top.
"""

import functools
import os
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cwps_jax.errors import CwpsError

# What is no data, and is skipped wherever it lies: all hidden files, and what Windows and macOS leave behind.
LEFTOVERS = ("thumbs.db", "desktop.ini", "__macosx")
MAX_MEMBER_BYTES = 10**9
# A member of an archive is a zip bomb if it unpacks to more than this many bytes and more than so many times.
BOMB_BYTES, BOMB_RATIO = 50 * 10**6, 100


class Listing(NamedTuple):
    """The direct content of a folder.

    Attributes:
        folders: their names, sorted.
        files: {name: a value that changes when the file does}, sorted by name.
    """

    folders: Sequence[str]
    files: Mapping[str, str]


class Folder:
    """A folder. Links must not lead out of it.

    Args:
        name: its path.

    Attributes:
        stamp: a value that changes whenever the place does.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.stamp = os.path.realpath(name)

    def listing(self, path: str) -> Listing:
        """Returns the content of a folder. Raises CwpsError if a link leads out of the place."""
        folders, files = [], {}
        try:
            with os.scandir(self.inside(path)) as entries:
                for entry in entries:
                    if _is_leftover(entry.name):
                        continue
                    if entry.is_dir():
                        folders.append(entry.name)
                    elif entry.is_file():
                        if path and entry.is_symlink():
                            self.inside(f"{path}/{entry.name}")
                        status = entry.stat()
                        files[entry.name] = f"{status.st_size} {status.st_mtime_ns}"
                    elif path:  # a pipe would be waited for; beside the tasks it does not matter
                        raise CwpsError(f"{entry.path}: neither a file nor a folder; remove it")
        except OSError as error:
            raise _unreadable(error.filename or self.describe(path), error) from error
        return Listing(sorted(folders), dict(sorted(files.items())))

    def read(self, path: str) -> bytes:
        """Returns a file's content. Raises CwpsError, with its name, if it cannot be read."""
        try:
            with open(self.describe(path), "rb") as file:
                return file.read()
        except OSError as error:
            raise _unreadable(self.describe(path), error) from error

    def describe(self, path: str) -> str:
        """Returns the path of a file or folder for messages."""
        return os.path.join(self.name, *path.split("/"))

    def inside(self, path: str) -> str:
        """Returns the full path. Raises CwpsError where a link leads out of the folder."""
        full = self.describe(path)
        real = os.path.realpath(full)
        if os.path.commonpath([real, self.stamp]) != self.stamp:
            raise CwpsError(f"{full}: leads out of {self.name}, to {real}; put the data itself there")
        return full


class Archive:
    """A zip archive, read without unpacking it, with the methods of a `Folder`.

    Args:
        name: its path.

    Raises:
        CwpsError: it is not an archive, or a member's path is not a plain one inside it or occurs twice.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._folders: dict[str, set[str]] = {"": set()}
        self._files: dict[str, dict[str, zipfile.ZipInfo]] = {}
        try:
            status = os.stat(name)
            self._archive = zipfile.ZipFile(name)
        except (OSError, zipfile.BadZipFile) as error:
            raise CwpsError(f"{name}: not a readable zip archive ({error}); repair or remove it") from error
        self.stamp = f"{os.path.realpath(name)} {status.st_size} {status.st_mtime_ns}"
        for member in self._archive.infolist():
            self._add(member)

    def _add(self, member: zipfile.ZipInfo) -> None:
        path = member.orig_filename
        parts = path.removesuffix("/").split("/")
        if "\\" in path or "\0" in path or re.match("[A-Za-z]:", path) or {"", ".", ".."} & set(parts):
            raise CwpsError(f"{self.describe(path)}: not a plain path inside the archive; write it again")
        if any(map(_is_leftover, parts)):
            return
        folder, _, file = path.rpartition("/")
        self._enter(folder)
        if file and self._files.setdefault(folder, {}).setdefault(file, member) is not member:
            raise CwpsError(f"{self.describe(path)}: is in the archive twice; write it again")

    def _enter(self, folder: str) -> None:
        if folder not in self._folders:
            self._folders[folder] = set()
            above, _, own = folder.rpartition("/")
            self._enter(above)
            self._folders[above].add(own)

    def listing(self, path: str) -> Listing:
        if path not in self._folders:
            raise CwpsError(f"{self.describe(path)}: no such folder in the archive")
        files = dict(sorted(self._files.get(path, {}).items()))
        for member in files.values() if path else ():  # beside the tasks there may be anything
            self._check(member)
        stamps = {name: f"{member.file_size} {member.CRC}" for name, member in files.items()}
        return Listing(sorted(self._folders[path]), stamps)

    def _check(self, member: zipfile.ZipInfo) -> None:
        what, size = self.describe(member.filename), member.file_size
        if member.flag_bits & 1:
            raise CwpsError(f"{what}: is encrypted; write the archive again without a password")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise CwpsError(f"{what}: is compressed by method {member.compress_type}; write it with deflate")
        if size > MAX_MEMBER_BYTES or (size > BOMB_BYTES and size > BOMB_RATIO * member.compress_size):
            raise CwpsError(
                f"{what}: {member.compress_size:,} bytes would unpack to {size:,}; "
                "refused as a zip bomb, remove it"
            )

    def read(self, path: str) -> bytes:
        folder, _, file = path.rpartition("/")
        member = self._files[folder][file]
        try:
            with self._archive.open(member) as stream:
                # The size is given so that a member whose header lies about it is not unpacked beyond it.
                return stream.read(member.file_size)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise _unreadable(self.describe(path), error) from error

    def describe(self, path: str) -> str:
        return f"{self.name}: {path}"


Place = Folder | Archive


def open_archive(name: str) -> Archive:
    """Returns an archive; one that has not changed since the last call is not listed again."""
    status = os.stat(name)
    return _listed(name, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _listed(name: str, size: int, changed: int) -> Archive:
    return Archive(name)


def _is_leftover(name: str) -> bool:
    return name.startswith(".") or name.lower() in LEFTOVERS


def _unreadable(what: str, error: Exception) -> CwpsError:
    why = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return CwpsError(f"{what}: cannot be read ({why}); repair or remove it")
