"""`ImageSource`: one split of a data set as it is stored. Every kind of data set is this one interface."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from cwps_jax.errors import CwpsError
from cwps_jax.settings import DataConfig

Box = tuple[float, float, float, float]


class Record(NamedTuple):
    """One image with its label, as it is stored.

    Attributes:
        image: an encoded image file, or an array (height, width, channels): uint8 if it is to be transformed,
            float32 if it goes into a model as it is.
        label: number of its class.
        box: left, top, right and bottom of the object in it, as shares of width and height in [0, 1].
        identity: bytes that identify the item if its image does not, because it was drawn from something
            else.
    """

    image: bytes | np.ndarray
    label: int
    box: Box | None = None
    identity: bytes | None = None


class ImageSource(Protocol):
    """Random access to the images of one split. Reading is safe from several threads.

    Attributes:
        name: its name in messages, such as "DATA/photo/train".
        classes: names of the classes; their positions are the labels. Each split of a task may have its own
            list; splits are matched by the names.
        fingerprint: a text that changes whenever the stored data may have changed; "" if results must not be
            stored.

    A source may also have a ``note`` for the log, on how its labels were read.
    """

    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> Sequence[str]: ...

    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def describe(self, index: int) -> str:
        """Returns the name of one image for messages: its file, or its position."""
        ...


class Opener(NamedTuple):
    """The functions that open a kind of data set.

    Attributes:
        open_split: from a task's `DataConfig`, its name and a split's name to the split. Raises CwpsError if
            something does not exist or cannot be read.
        split_names: from the config and the task's name to the names of its splits.
    """

    open_split: Callable[[DataConfig, str, str], ImageSource]
    split_names: Callable[[DataConfig, str], tuple[str, ...]]


class ArraySource:
    """Images and labels that are in memory.

    Args:
        images: (n, height, width, channels), uint8 or float32.
        labels: (n,), whole numbers.
        classes: names of the classes.
        name: for messages.
        identities: bytes that identify each item, if its image does not.
    """

    fingerprint = ""

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        classes: Sequence[str],
        *,
        name: str = "arrays",
        identities: Sequence[bytes] | None = None,
    ) -> None:
        if images.dtype not in (np.uint8, np.float32):
            raise CwpsError(
                f"{name}: images are {images.dtype}; give uint8, or float32 as the model takes it"
            )
        if len(images) != len(labels):
            raise CwpsError(f"{name}: {len(images)} images but {len(labels)} labels")
        self.images, self.labels, self.classes, self.name = images, labels, classes, name
        self._identities = identities

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        identity = self._identities[index] if self._identities is not None else None
        return Record(self.images[index], int(self.labels[index]), identity=identity)

    def describe(self, index: int) -> str:
        return f"{self.name}, item {index}"
