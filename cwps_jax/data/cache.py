"""Images that were decoded and resized once, kept in memory or on disk until a limit is reached.

Every epoch visits each image once, in random order: to evict would throw out what is needed next. So the
first images stay and what comes after the limit is not kept, which hits in the share of the images that fits.

On disk, a process appends pixels to a file of its own and then a record to an index of its own, and reads
what other processes had left there when it began. A record's checksum covers the record and its pixels; what
does not match it, after a kill, a crash or a failing disk, is a miss and never a wrong image.
"""

import abc
import io
import os
import pathlib
import secrets
import struct
import tempfile
import threading
import zlib
from typing import Literal, NamedTuple

import numpy as np
from absl import logging

from cwps_jax.errors import CwpsError

KEY_BYTES = 32
PLACE = struct.Struct("<QII")  # offset, height, width
RECORD = struct.Struct(f"<{KEY_BYTES}s{PLACE.size}sI")  # key, place, checksum
PIXELS, INDEX = ".pixels-1", ".index-1"  # suffixes, with the version of the format
SHOWN = 10  # damaged images that are named in the log


class PixelCache(abc.ABC):
    """Images of uint8 (height, width, 3) by keys of 32 bytes; safe to use from several threads.

    Attributes:
        bytes_held: what is in it, as far as this process knows.
        hits: how often an image was found.
        misses: how often it was not.
    """

    def __init__(self, name: str, limit_bytes: int) -> None:
        self.bytes_held = self.hits = self.misses = 0
        self._name, self._limit_bytes = name, limit_bytes
        self._counting, self._writing = threading.Lock(), threading.Lock()
        self._full = False

    def get(self, key: bytes) -> np.ndarray | None:
        """Returns the image, read-only, or None where there is none."""
        pixels = self._read(key)
        with self._counting:
            self.hits += pixels is not None
            self.misses += pixels is None
        return pixels

    def put(self, key: bytes, pixels: np.ndarray) -> None:
        """Keeps a copy of the image, unless the key is there already or the limit is reached.

        Raises:
            ValueError: a key of another length, or pixels of another shape or dtype.
        """
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key of {len(key)} bytes: must be {KEY_BYTES}")
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise ValueError(f"pixels {pixels.dtype}{list(pixels.shape)}: must be uint8 (height, width, 3)")
        with self._writing:
            if not self._has(key):
                self._write(key, np.ascontiguousarray(pixels))

    @abc.abstractmethod
    def clear(self) -> None:
        """Forgets what takes up this process's memory; what is on disk stays there."""

    def _fits(self, size: int) -> bool:
        if self.bytes_held + size <= self._limit_bytes:
            return True
        if not self._full:
            self._full = True
            logging.info(
                "the image cache (%s) is full with %.2f GB (config.cache_gigabytes): what is not in it is "
                "decoded in every epoch",
                self._name,
                self.bytes_held / 1e9,
            )
        return False

    @abc.abstractmethod
    def _has(self, key: bytes) -> bool: ...

    @abc.abstractmethod
    def _read(self, key: bytes) -> np.ndarray | None: ...

    @abc.abstractmethod
    def _write(self, key: bytes, pixels: np.ndarray) -> None: ...


class MemoryCache(PixelCache):
    """Images in this process's memory.

    Args:
        limit_bytes: of pixels that are kept at most.
    """

    def __init__(self, limit_bytes: int) -> None:
        super().__init__("memory", limit_bytes)
        self._images: dict[bytes, np.ndarray] = {}

    def clear(self) -> None:
        with self._writing:
            self._images, self.bytes_held, self._full = {}, 0, False

    def _has(self, key: bytes) -> bool:
        return key in self._images

    def _read(self, key: bytes) -> np.ndarray | None:
        return self._images.get(key)

    def _write(self, key: bytes, pixels: np.ndarray) -> None:
        if self._fits(pixels.nbytes):
            kept = pixels.copy()
            kept.flags.writeable = False
            self._images[key] = kept
            self.bytes_held += kept.nbytes


class _Entry(NamedTuple):
    file: pathlib.Path
    place: bytes  # PLACE, packed
    checksum: int
    checked: bool


class DiskCache(PixelCache):
    """Images in a folder, which outlive the process; several processes may use it at once.

    The folder may be deleted at any time. With several processes writing at once, the limit is exceeded by
    at most one image of each.

    Args:
        folder: where they are; it is made if it does not exist.
        limit_bytes: of files in the folder at most, whichever process wrote them.

    Raises:
        CwpsError: the folder cannot be made, read or written to.
    """

    def __init__(self, folder: str | os.PathLike[str], limit_bytes: int) -> None:
        self._folder = pathlib.Path(folder).expanduser()
        super().__init__(str(self._folder), limit_bytes)
        self._token = secrets.token_hex(8)
        self._entries: dict[bytes, _Entry] = {}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._folder):
                pass  # so that a folder that is not writable is refused now
            for index in sorted(self._folder.glob(f"*{INDEX}")):
                self._entries |= _entries(index)
            self.bytes_held = self._size()
        except OSError as error:
            reason = error.strerror or error
            raise CwpsError(
                f"{self._folder}: images cannot be cached here ({reason}); choose another config.cache_dir, "
                "or config.cache=memory"
            ) from error
        logging.info(
            "%d cached images found in %s, %.2f GB", len(self._entries), self._folder, self.bytes_held / 1e9
        )

    def clear(self) -> None:
        pass

    def _has(self, key: bytes) -> bool:
        return key in self._entries

    def _read(self, key: bytes) -> np.ndarray | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        offset, height, width = PLACE.unpack(entry.place)
        pixels = np.empty((height, width, 3), np.uint8)
        try:
            # Opened anew for each image: 20% slower than an open file, and no number of files is too many.
            with open(entry.file, "rb", buffering=0) as file:
                file.seek(offset)
                whole = file.readinto(pixels.data) == pixels.nbytes
            if not whole or not (entry.checked or _checksum(key, entry.place, pixels) == entry.checksum):
                raise OSError("cut off or changed")
        except OSError as error:
            self._entries.pop(key, None)
            logging.log_first_n(
                logging.WARNING,
                "a cached image in %s is lost: %s",
                SHOWN,
                entry.file,
                error.strerror or error,
            )
            return None
        if not entry.checked:
            self._entries[key] = entry._replace(checked=True)
        pixels.flags.writeable = False
        return pixels

    def _write(self, key: bytes, pixels: np.ndarray) -> None:
        size = pixels.nbytes + RECORD.size
        if not self._fits(size):
            return
        # With the process's number, a fork does not write to its parent's file.
        file = self._folder / f"{self._token}-{os.getpid()}{PIXELS}"
        try:
            self.bytes_held = self._size()  # other processes write too
            if not self._fits(size):
                return
            with open(file, "ab", buffering=0) as opened:
                place = PLACE.pack(opened.seek(0, os.SEEK_END), *pixels.shape[:2])
                _write_all(opened, pixels.data)
            # Only after the pixels are written, and closed: a network's file system may refuse them then.
            checksum = _checksum(key, place, pixels)
            with open(file.with_suffix(INDEX), "ab", buffering=0) as opened:
                _write_all(opened, RECORD.pack(key, place, checksum))
        except OSError as error:
            self._limit_bytes, self._full = 0, True
            logging.warning("no more images are cached: %s: %s", self._folder, error.strerror or error)
            return
        self._entries[key] = _Entry(file, place, checksum, checked=True)
        self.bytes_held += size

    def _size(self) -> int:
        with os.scandir(self._folder) as files:
            return sum(file.stat().st_size for file in files if file.name.endswith((PIXELS, INDEX)))


def open_cache(
    kind: Literal["none", "memory", "disk"], folder: str | os.PathLike[str], limit_bytes: int
) -> PixelCache | None:
    """Returns the cache of a config, or None for "none".

    Args:
        kind: where images are kept.
        folder: of images on disk; used for nothing else.
        limit_bytes: that are kept at most.

    Raises:
        CwpsError: the folder cannot be made, read or written to.
    """
    if kind == "none":
        return None
    return MemoryCache(limit_bytes) if kind == "memory" else DiskCache(folder, limit_bytes)


def _entries(index: pathlib.Path) -> dict[bytes, _Entry]:
    """Returns the images of an index that can be in its file of pixels."""
    content = index.read_bytes()
    file = index.with_suffix(PIXELS)
    size = file.stat().st_size if file.exists() else 0  # after the index: its process may be writing
    found, whole = {}, len(content) // RECORD.size * RECORD.size
    for key, place, checksum in RECORD.iter_unpack(content[:whole]):
        offset, height, width = PLACE.unpack(place)
        if offset + height * width * 3 <= size:
            found[key] = _Entry(file, place, checksum, checked=False)
    if len(found) * RECORD.size != len(content):
        logging.warning("%s: cut off or damaged; of its cached images %d may be whole", index, len(found))
    return found


def _checksum(key: bytes, place: bytes, pixels: np.ndarray) -> int:
    # Of the record too: the pixels must be those of this key, in this shape.
    return zlib.crc32(key + place, zlib.crc32(pixels.data))


def _write_all(file: io.FileIO, content: bytes | memoryview) -> None:
    rest = memoryview(content).cast("B")
    while rest:
        rest = rest[file.write(rest) :]
