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
        image: an encoded image file; or an array, uint8 (height, width, channels) for what is to be
            transformed, float32 for what goes into a model as it is.
        label: number of its class.
        box: left, top, right and bottom of the object in it, as shares of width and height in [0, 1].
        identity: what identifies the item where its image does not, because it was drawn from something.
    """

    image: bytes | np.ndarray
    label: int
    box: Box | None = None
    identity: bytes | None = None


class ImageSource(Protocol):
    """Random access to the images of one split. Reading is safe from several threads.

    Attributes:
        name: what a user knows it by, such as "DATA/photo/train", for messages.
        classes: names of the classes; their positions are the labels. Each split of a task may have its own
            list: a task goes by the names.
        fingerprint: changes whenever what is stored may have changed; "" for what is not to be remembered.

    A source may have a ``note`` too, a text for the log: how its labels were read.
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
        """Returns what a user finds one image by: its file, or its position."""
        ...


class Opener(NamedTuple):
    """How a kind of data set is opened.

    Attributes:
        open_split: from a task's `DataConfig`, the task's name and a split's to the split. Raises CwpsError
            for whatever is not there or cannot be read.
        split_names: from the config and the task's name to the names of the splits that there are.
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
        identities: what identifies each item where its image does not.
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
