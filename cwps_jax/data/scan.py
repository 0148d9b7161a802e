"""One pass over a source before it is used: every image is read, hashed and decoded once, and remembered."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from cwps_jax.data.decode import Undecodable, open_image, to_rgb
from cwps_jax.data.source import Box, ImageSource
from cwps_jax.errors import CwpsError
from cwps_jax.files import write_atomically

FORMAT = 3
CHUNK = 1024  # items that are read ahead at most
NO_BOX = (float("nan"),) * 4


@dataclasses.dataclass(frozen=True)
class Scan:
    """What a pass over a source found.

    Attributes:
        labels: (n,) int64, as they are stored, right or wrong; 0 where they could not be read.
        digests: (n, 32) uint8, the SHA-256 of each item's content, or of its identity where it has one.
        boxes: (n, 4) float64, the box of each item; NaN where it has none.
        unreadable: {index: why its image cannot be read and decoded}.
    """

    labels: np.ndarray
    digests: np.ndarray
    boxes: np.ndarray
    unreadable: dict[int, str]


def scan(
    source: ImageSource,
    *,
    cache_dir: str = "",
    threads: int = 1,
    observe: Callable[[int], None] = lambda count: None,
) -> Scan:
    """Returns what a pass over the source finds; a source that has not changed is not read again.

    Args:
        source: what to read.
        cache_dir: folder of what is remembered; "" for nothing.
        threads: how many read and decode at once.
        observe: called with the number of items that were read since the last call.
    """
    remembered = None
    if cache_dir and source.fingerprint:
        name = hashlib.sha256(f"{FORMAT} {source.fingerprint}".encode()).hexdigest()
        remembered = pathlib.Path(cache_dir).expanduser() / "scans" / f"{name}.safetensors"
        if remembered.is_file():
            return _load(remembered)

    def look(index: int) -> tuple[int, bytes, Box, str]:
        try:
            record = source[index]
        except CwpsError as error:  # such as a broken place in an archive: as bad as a broken image
            return 0, bytes(32), NO_BOX, str(error)
        content = record.image if isinstance(record.image, bytes) else record.image.tobytes()
        why = ""
        left, top, right, bottom = box = record.box or NO_BOX
        if record.box and not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            why = f"its box {tuple(map(float, box))} is none, as shares from the left and top"
        if isinstance(record.image, bytes):
            try:
                to_rgb(open_image(record.image))
            except Undecodable as error:
                why = str(error)
        digest = hashlib.sha256(record.identity if record.identity is not None else content).digest()
        return record.label, digest, box, why

    looked: list[tuple[int, bytes, Box, str]] = []
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(source), CHUNK):
            chunk = range(start, min(start + CHUNK, len(source)))
            looked += pool.map(look, chunk)
            observe(len(chunk))
    found = Scan(
        np.array([label for label, *_ in looked], np.int64),
        np.frombuffer(b"".join(digest for _, digest, *_ in looked), np.uint8).reshape(-1, 32),
        np.array([box for _, _, box, _ in looked], np.float64).reshape(-1, 4),
        {index: why for index, (*_, why) in enumerate(looked) if why},
    )
    if remembered:
        _save(remembered, found)
    return found


def _save(path: pathlib.Path, found: Scan) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"labels": found.labels, "digests": found.digests, "boxes": found.boxes}
    write_atomically(path, save(arrays, {"unreadable": json.dumps(list(found.unreadable.items()))}))


def _load(path: pathlib.Path) -> Scan:
    try:
        with safe_open(path, "numpy") as stored:
            unreadable = dict(json.loads(stored.metadata()["unreadable"]))
            labels, digests, boxes = map(stored.get_tensor, ("labels", "digests", "boxes"))
            return Scan(labels, digests, boxes, unreadable)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CwpsError(f"{path}: cannot be read ({error}); remove it, and the data is read anew") from error
