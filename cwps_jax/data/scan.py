"""One pass over a source before it is used: every image is read, hashed and decoded; results are stored."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from absl import logging
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from cwps_jax.data.decode import Undecodable, open_image, to_rgb, values
from cwps_jax.data.source import Box, ImageSource
from cwps_jax.errors import CwpsError
from cwps_jax.files import write_atomically

FORMAT = 5
CHUNK = 1024  # items that are read ahead at most
NO_BOX = (float("nan"),) * 4
NO_VALUES = (0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Scan:
    """The results of a pass over a source.

    Attributes:
        labels: (n,) int64, the stored labels, unchecked; 0 where they could not be read.
        digests: (n, 32) uint8, the SHA-256 of each item's content, or of its identity where it has one.
        boxes: (n, 4) float64, the box of each item; NaN where it has none.
        unreadable: {index: the reason why its image cannot be read or decoded}.
        values: (n, 3) int64: the bits in which an image's pixels are stored, their lowest and their highest
            value; zeros if they were not looked at.
    """

    labels: np.ndarray
    digests: np.ndarray
    boxes: np.ndarray
    unreadable: dict[int, str]
    values: np.ndarray


class _Looked(NamedTuple):
    label: int
    digest: bytes
    box: Box
    why: str
    values: tuple[int, int, int]


def scan(
    source: ImageSource,
    *,
    cache_dir: str = "",
    threads: int = 1,
    observe: Callable[[int], None] = lambda count: None,
) -> Scan:
    """Returns the results of a pass over the source; a source that has not changed is not read again.

    Args:
        source: the source to read.
        cache_dir: folder of the stored results; "" to store nothing.
        threads: number of threads that read and decode.
        observe: called with the number of items that were read since the last call.
    """
    remembered = None
    if cache_dir and source.fingerprint:
        name = hashlib.sha256(f"{FORMAT} {source.fingerprint}".encode()).hexdigest()
        remembered = pathlib.Path(cache_dir).expanduser() / "scans" / f"{name}.safetensors"
        if remembered.is_file():
            return _load(remembered)

    def look(index: int) -> _Looked:
        try:
            record = source[index]
        except CwpsError as error:  # such as a broken place in an archive: as bad as a broken image
            return _Looked(0, bytes(32), NO_BOX, str(error), NO_VALUES)
        content = record.image if isinstance(record.image, bytes) else record.image.tobytes()
        why, found = "", NO_VALUES
        left, top, right, bottom = box = record.box or NO_BOX
        if record.box and not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            why = f"its box {tuple(map(float, box))} is none, as shares from the left and top"
        if isinstance(record.image, bytes):
            try:
                image = open_image(record.image)
                found = values(image, to_rgb(image))
            except Undecodable as error:
                why = str(error)
        elif record.image.dtype == np.uint8 and record.image.size:
            found = 8, int(record.image.min()), int(record.image.max())
        digest = hashlib.sha256(record.identity if record.identity is not None else content).digest()
        return _Looked(record.label, digest, box, why, found)

    looked: list[_Looked] = []
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(source), CHUNK):
            chunk = range(start, min(start + CHUNK, len(source)))
            looked += pool.map(look, chunk)
            observe(len(chunk))
    found = Scan(
        np.array([one.label for one in looked], np.int64),
        np.frombuffer(b"".join(one.digest for one in looked), np.uint8).reshape(-1, 32),
        np.array([one.box for one in looked], np.float64).reshape(-1, 4),
        {index: one.why for index, one in enumerate(looked) if one.why},
        np.array([one.values for one in looked], np.int64).reshape(-1, 3),
    )
    if remembered:
        _save(remembered, found)
    return found


def _save(path: pathlib.Path, found: Scan) -> None:
    arrays = {"labels": found.labels, "digests": found.digests, "boxes": found.boxes, "values": found.values}
    content = save(arrays, {"unreadable": json.dumps(list(found.unreadable.items()))})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        logging.warning(
            "%s: the results of this pass cannot be stored (%s); name another config.cache_dir",
            path.parent,
            error.strerror,
        )


def _load(path: pathlib.Path) -> Scan:
    try:
        with safe_open(path, "numpy") as stored:
            unreadable = dict(json.loads(stored.metadata()["unreadable"]))
            labels, digests, boxes, ranges = map(stored.get_tensor, ("labels", "digests", "boxes", "values"))
            return Scan(labels, digests, boxes, unreadable, ranges)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CwpsError(f"{path}: cannot be read ({error}); remove it, and the data is read again") from error
