"""Images that were decoded and resized once, kept in memory or on disk until a limit is reached.

Every epoch uses each image once, in random order, so an evicted image would soon be needed. Therefore the
first images stay, and images after the limit are not kept; the hit rate is the share of the images that fits.
"""

import os
import pathlib
import secrets
import struct
import tempfile
import threading
from typing import Any, Literal

import numpy as np
from absl import logging

from cwps_jax.errors import CwpsError
from cwps_jax.files import replacing

KEY_BYTES = 32
SIZE = struct.Struct("<II")  # height, width; in front of an image's pixels
SUFFIX = ".array_record"
FILE_BYTES = 1 << 26  # of images that are written at once
MOST_FILES = 256  # that a cache grows to: each is kept open
SHOWN = 10  # damaged images that are named in the log


class PixelCache:
    """Images of uint8 (height, width, 3) by keys of 32 bytes, in memory; safe to use from several threads.

    Args:
        limit_bytes: largest number of bytes of pixels.
        name: for the log.

    Attributes:
        bytes_held: bytes of its images, as far as this process knows.
    """

    def __init__(self, limit_bytes: int, name: str = "memory") -> None:
        self.bytes_held = 0
        self._limit_bytes, self._name = limit_bytes, name
        self._images: dict[bytes, np.ndarray] = {}
        self._lock = threading.RLock()
        self._full = False

    def get(self, key: bytes) -> np.ndarray | None:
        """Returns the image, read-only, or None if there is none."""
        return self._images.get(key)

    def put(self, key: bytes, pixels: np.ndarray) -> None:
        """Keeps a copy of the image, unless the cache has the key already or the limit is reached.

        Raises:
            ValueError: a key of another length, or pixels of another shape or dtype.
        """
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key of {len(key)} bytes: must be {KEY_BYTES}")
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise ValueError(f"pixels {pixels.dtype}{list(pixels.shape)}: must be uint8 (height, width, 3)")
        with self._lock:
            if key in self._images:
                return
            if self.bytes_held + pixels.nbytes > self._limit_bytes:
                self._say_full()
                return
            kept = self._images[key] = pixels.copy()
            kept.flags.writeable = False
            self.bytes_held += kept.nbytes

    def clear(self) -> None:
        """Frees this process's memory, after writing its images to disk where there is one."""
        with self._lock:
            self._images, self.bytes_held, self._full = {}, 0, False

    def _say_full(self) -> None:
        if not self._full:
            self._full = True
            logging.info(
                "the image cache (%s) is full with %.2f GB (config.cache_gigabytes): images that are not in "
                "it are decoded in every epoch",
                self._name,
                self.bytes_held / 1e9,
            )


class DiskCache(PixelCache):
    """Images in a folder, which outlive the process; several processes may use it at once.

    A process collects images in memory, writes some hundreds at once to an array_record file of its own, with
    their keys as its last record, and reads what other processes had left there when it began. So a file
    exists as a whole or not at all, a killed process loses the images that it has not written yet, and
    array_record's checksums turn a damaged image into a miss. The folder may be deleted at any time.

    Args:
        folder: the folder; it is made if it does not exist.
        limit_bytes: largest number of bytes of all files in the folder. Several processes that write at once
            may exceed it by the images that each of them collects.

    Raises:
        CwpsError: the folder cannot be made, read or written to.
    """

    def __init__(self, folder: str | os.PathLike[str], limit_bytes: int) -> None:
        self._folder = pathlib.Path(folder).expanduser()
        super().__init__(limit_bytes, str(self._folder))
        self._places: dict[bytes, tuple[Any, int]] = {}  # which record of which reader
        self._at_once = max(FILE_BYTES, limit_bytes // MOST_FILES)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._folder):
                pass  # so that a folder that is not writable is refused now
            for file in sorted(self._folder.glob(f"*{SUFFIX}")):
                self._open(file)
            self.bytes_held = self._written = self._on_disk()
        except OSError as error:
            raise CwpsError(
                f"{self._folder}: images cannot be cached here ({error.strerror or error}); choose another "
                "config.cache_dir, or config.cache=memory"
            ) from error
        logging.info(
            "%d cached images found in %s, %.2f GB", len(self._places), self._folder, self.bytes_held / 1e9
        )

    def get(self, key: bytes) -> np.ndarray | None:
        pixels = self._images.get(key)
        if pixels is not None or (place := self._places.get(key)) is None:
            return pixels
        reader, number = place
        try:
            (record,) = reader.read([number])
            return np.frombuffer(record, np.uint8, offset=SIZE.size).reshape(*SIZE.unpack_from(record), 3)
        except (OSError, RuntimeError, ValueError, struct.error) as error:
            self._places.pop(key, None)
            logging.log_first_n(logging.WARNING, "a cached image in %s is lost: %s", SHOWN, self._name, error)
            return None

    def put(self, key: bytes, pixels: np.ndarray) -> None:
        with self._lock:
            if key in self._places:
                return
            super().put(key, pixels)
            if self.bytes_held - self._written >= self._at_once:
                self.clear()

    def clear(self) -> None:
        with self._lock:
            if self._images:
                try:
                    self._write()
                    self.bytes_held = self._written = self._on_disk()  # other processes write too
                except (OSError, RuntimeError) as error:
                    self._limit_bytes = 0
                    logging.warning("no more images are cached: %s: %s", self._folder, error)
            self._images = {}

    def _write(self) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        file = self._folder / f"{secrets.token_hex(8)}{SUFFIX}"
        with replacing(file) as partial:
            writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
            for pixels in self._images.values():
                writer.write(SIZE.pack(*pixels.shape[:2]) + pixels.tobytes())
            writer.write(b"".join(self._images))
            writer.close()
        self._open(file)

    def _open(self, file: pathlib.Path) -> None:
        """Enters the images of a file."""
        from array_record.python.array_record_module import ArrayRecordReader

        try:
            reader = ArrayRecordReader(str(file))
            count = reader.num_records() - 1
            (keys,) = reader.read([max(count, 0)])  # an error where there is no record
            if len(keys) != count * KEY_BYTES:
                raise ValueError("it was written by something else")
        except (RuntimeError, ValueError) as error:
            logging.warning("%s: its cached images are lost: %s", file, error)
            return
        for number in range(count):
            self._places[keys[number * KEY_BYTES : (number + 1) * KEY_BYTES]] = reader, number

    def _on_disk(self) -> int:
        return sum(file.stat().st_size for file in self._folder.glob(f"*{SUFFIX}"))


def open_cache(
    kind: Literal["none", "memory", "disk"], folder: str | os.PathLike[str], limit_bytes: int
) -> PixelCache | None:
    """Returns the cache of a config, or None for "none" and if there can be none, which is logged.

    Args:
        kind: "none", "memory" or "disk".
        folder: folder of images on disk; it is used for nothing else.
        limit_bytes: largest number of bytes that are kept.
    """
    if kind == "none":
        return None
    if kind == "memory":
        return PixelCache(limit_bytes)
    try:
        return DiskCache(folder, limit_bytes)
    except CwpsError as error:
        logging.warning("%s; continuing without a cache", error)
        return None
