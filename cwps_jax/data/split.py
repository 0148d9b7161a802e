"""Splits: the data as training and evaluation use them, in memory or still to be decoded."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from cwps_jax.data.cache import PixelCache
from cwps_jax.data.decode import Undecodable
from cwps_jax.data.preparation import Preparation
from cwps_jax.data.source import Box, ImageSource
from cwps_jax.data.transforms import Transform
from cwps_jax.errors import CwpsError

Arrays = Mapping[str, np.ndarray]
Batch = dict[str, np.ndarray]


class Split(Protocol):
    """Items with an image each and other fields, usually a label.

    Attributes:
        fields: {name: (n, ...)}, the arrays for losses and metrics.
        preparation: the preparation of a batch on the device.
        image: shape and type of one image as the model sees it.
        threads: threads that read batches ahead; 0 where reading costs nothing.
        prefetch: batches that are ready ahead of the step.
        draws: number of random numbers that the augmentation of an item needs.
        evaluated_as: the preparation of an image in evaluation, on host and device; plain JSON.
        fingerprint: SHA-256 of the images as they are stored and of all fields, in order.
    """

    @property
    def fields(self) -> Arrays: ...

    @property
    def preparation(self) -> Preparation: ...

    @property
    def image(self) -> jax.ShapeDtypeStruct: ...

    @property
    def threads(self) -> int: ...

    @property
    def prefetch(self) -> int: ...

    @property
    def draws(self) -> int: ...

    @property
    def evaluated_as(self) -> Mapping[str, Any]: ...

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def read(self, rows: np.ndarray, draws: np.ndarray | None) -> Batch:
        """Returns a batch: "image", (rows, height, width, channels), and all fields.

        Args:
            rows: which items, (rows,).
            draws: random numbers for their augmentation, (rows, draws), in [0, 1); None for images as
                evaluation takes them.
        """
        ...

    def with_fields(self, **fields: np.ndarray) -> "Split":
        """Returns the split with more fields, each (n, ...)."""
        ...

    def take(self, rows: np.ndarray) -> "Split":
        """Returns the split of some of its items."""
        ...


class ArraySplit:
    """Arrays in memory, with "image" as the model takes it. ``split["label"]`` is one of them.

    Args:
        arrays: {name: (n, ...)}.
        preparation: see `Split`.
    """

    threads = draws = 0
    prefetch = 2

    def __init__(self, arrays: Arrays, preparation: Preparation = Preparation()) -> None:
        self.fields = dict(arrays)
        self.preparation = preparation

    def __len__(self) -> int:
        return len(self.fields["image"])

    def __getitem__(self, name: str) -> np.ndarray:
        return self.fields[name]

    def __contains__(self, name: str) -> bool:
        return name in self.fields

    def keys(self) -> Iterable[str]:
        """Returns the names of the arrays, so that ``{**split}`` is a dict of them."""
        return self.fields.keys()

    @property
    def image(self) -> jax.ShapeDtypeStruct:
        images = self.fields["image"]
        return jax.ShapeDtypeStruct(images.shape[1:], images.dtype)

    @property
    def evaluated_as(self) -> Mapping[str, Any]:
        return self.preparation.evaluated_as

    @property
    def fingerprint(self) -> str:
        return _fingerprint(self.fields)

    def read(self, rows: np.ndarray, draws: np.ndarray | None) -> Batch:
        return {name: array[rows] for name, array in self.fields.items()}

    def with_fields(self, **fields: np.ndarray) -> "ArraySplit":
        return ArraySplit({**self.fields, **fields}, self.preparation)

    def take(self, rows: np.ndarray) -> "ArraySplit":
        return ArraySplit({name: array[rows] for name, array in self.fields.items()}, self.preparation)


@dataclasses.dataclass(frozen=True)
class ImageSplit:
    """Images of a source, decoded and transformed when they are asked for.

    Attributes:
        source: the source of the images.
        items: (n,), the source's items that are in the split.
        keys: (n, bytes) uint8, the hash of each image's content and box, on which its pixels depend.
        fields: {"label": (n,), ...}.
        transform: the preparation of each image on the host.
        preparation: the preparation of a batch on the device.
        cache: the cache of decoded images, or None.
        threads, prefetch: see `Split`.
    """

    source: ImageSource
    items: np.ndarray
    keys: np.ndarray
    fields: Arrays
    transform: Transform
    preparation: Preparation
    cache: PixelCache | None = None
    threads: int = 1
    prefetch: int = 2

    def __len__(self) -> int:
        return len(self.items)

    @property
    def image(self) -> jax.ShapeDtypeStruct:
        side = self.transform.image_size
        return jax.ShapeDtypeStruct((side, side, 3), np.float32)

    @property
    def draws(self) -> int:
        return self.transform.draws

    @property
    def evaluated_as(self) -> Mapping[str, Any]:
        return {**self.transform.evaluated_as, **self.preparation.evaluated_as}

    @property
    def fingerprint(self) -> str:
        return _fingerprint({**self.fields, "image": self.keys})

    def read(self, rows: np.ndarray, draws: np.ndarray | None) -> Batch:
        images = np.empty((len(rows), *self.image.shape), np.uint8)
        each = itertools.repeat(None, len(rows)) if draws is None else draws
        for place, row, drawn in zip(images, rows, each, strict=True):
            place[...] = self._image(int(row), drawn)
        return {**{name: array[rows] for name, array in self.fields.items()}, "image": images}

    def with_fields(self, **fields: np.ndarray) -> "ImageSplit":
        return dataclasses.replace(self, fields={**self.fields, **fields})

    def take(self, rows: np.ndarray) -> "ImageSplit":
        fields = {name: array[rows] for name, array in self.fields.items()}
        return dataclasses.replace(self, items=self.items[rows], keys=self.keys[rows], fields=fields)

    def _image(self, row: int, draws: np.ndarray | None) -> np.ndarray:
        image, box = self._pixels(row)
        try:
            if draws is None:
                return self.transform.evaluation(image, box)
            return self.transform.training(image, box, draws)
        except Undecodable as error:
            raise self._changed(row, error) from error

    def _pixels(self, row: int) -> tuple[bytes | np.ndarray, Box | None]:
        """Returns the image as it is stored, or as the cache has it, then cut to its box already."""
        if self.cache is None:
            record = self.source[int(self.items[row])]
            return record.image, record.box
        key = hashlib.sha256(self.keys[row].tobytes() + self.transform.stored_as.encode()).digest()
        pixels = self.cache.get(key)
        if pixels is None:
            record = self.source[int(self.items[row])]
            try:
                pixels = self.transform.stored(record.image, record.box)
            except Undecodable as error:
                raise self._changed(row, error) from error
            self.cache.put(key, pixels)
        return pixels, None

    def _changed(self, row: int, error: Undecodable) -> CwpsError:
        where = self.source.describe(int(self.items[row]))
        return CwpsError(
            f"{where}: no longer a readable image ({error}); put back what was there, or run again"
        )


def _fingerprint(fields: Arrays) -> str:
    sha256 = hashlib.sha256()
    # All but "classes", which is no data: it says how much of a padded head is real.
    for name in sorted(fields.keys() - {"classes"}):
        array = np.ascontiguousarray(fields[name])
        sha256.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    return sha256.hexdigest()


def as_split(split: Split | Arrays) -> Split:
    """Returns the split itself, or an `ArraySplit` of a dict of arrays."""
    return ArraySplit(split) if isinstance(split, Mapping) else split
