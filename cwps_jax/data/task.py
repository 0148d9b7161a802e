"""`TaskData`: one task's training, validation and test data."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from cwps_jax.data.arrays_check import check_labels, check_same_images, checked_arrays, checked_split
from cwps_jax.data.split import Arrays, Split
from cwps_jax.errors import CwpsError
from cwps_jax.settings import DataConfig

VALIDATION_SHARE = 0.1


@dataclasses.dataclass(frozen=True, init=False)
class TaskData:
    """The data of one task.

    A split is a dict of arrays or lists with a common first axis. "image" is the model's input, and every
    other entry (usually "label") is for the loss and the metric. A split may also be a `Split`, such as
    images that are decoded when they are needed. Data that cannot be trained on are refused, see
    `arrays_check`.

    Attributes:
        train: the data for training.
        validation: the data on which every choice is made.
        test: the data that are read once, at the end.
        classes: number of classes, or None where the task is not a classification.
        note: a note on how the data were made, for the log.
        class_names: names of the classes, whose positions are the labels; () where they have none.
        images: the settings by which the data were loaded; None for arrays.
    """

    train: Split
    validation: Split
    test: Split
    classes: int | None = None
    note: str = ""
    class_names: tuple[str, ...] = ()
    images: DataConfig | None = None

    def __init__(
        self,
        train: Split | Arrays,
        validation: Split | Arrays,
        test: Split | Arrays,
        classes: int | None = None,
        note: str = "",
        class_names: Sequence[str] = (),
        images: DataConfig | None = None,
    ) -> None:
        if class_names and len(class_names) != classes:
            raise CwpsError(f"{len(class_names)} class names for {classes} classes: give one for each")
        for name, given in (("train", train), ("validation", validation), ("test", test)):
            object.__setattr__(self, name, checked_split(given, name, classes))
        check_same_images({"train": self.train, "validation": self.validation, "test": self.test})
        object.__setattr__(self, "classes", classes)
        object.__setattr__(self, "note", note)
        object.__setattr__(self, "class_names", tuple(class_names))
        object.__setattr__(self, "images", images)

    @classmethod
    def from_arrays(
        cls,
        train: Arrays,
        test: Arrays,
        *,
        validation: Arrays | None = None,
        classes: int | None = None,
        class_names: Sequence[str] = (),
        item_ids: Sequence[bytes] | None = None,
    ) -> "TaskData":
        """Returns a task from a training and a test set.

        Args:
            train: dict of arrays, (n, ...) each.
            test: dict of arrays, (n, ...) each.
            validation: dict of arrays; by default a tenth of each class of `train` is set apart, chosen by
                the hash of the item, so that it is the same in every run (METHOD, "Setting").
            classes: number of classes; None if the task is not a classification.
            class_names: names of the classes.
            item_ids: bytes that identify each training item; by default those of its image.
        """
        if validation is None:
            train = checked_arrays(train, "train", classes)
            if classes is not None:
                check_labels(train, classes, "train")
            ids = item_ids if item_ids is not None else [image.tobytes() for image in train["image"]]
            groups = train["label"] if classes is not None else np.zeros(len(ids), np.int32)
            held_out = held_out_items([hashlib.sha256(one).digest() for one in ids], groups, VALIDATION_SHARE)
            validation = {name: array[held_out] for name, array in train.items()}
            train = {name: array[~held_out] for name, array in train.items()}
        return cls(train, validation, test, classes, class_names=class_names)


def held_out_items(digests: Sequence[bytes] | np.ndarray, groups: np.ndarray, share: float) -> np.ndarray:
    """Returns a boolean mask of the items with the lowest hashes of each group.

    At least one of each group is held out, and at least one is not.

    Args:
        digests: hash of each item, bytes or (n, 32) uint8.
        groups: each item's group, such as its class.
        share: share of each group to hold out, rounded to whole items.
    """
    rank = np.array([int.from_bytes(bytes(one[:8]), "big") for one in digests], np.uint64)
    held_out = np.zeros(len(digests), bool)
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held_out[members[np.argsort(rank[members], kind="stable")[:count]]] = True
    return held_out
