"""`TaskData`: one task's training, validation and test data."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from cwps_jax.data.split import Arrays, Split, as_split
from cwps_jax.errors import CwpsError
from cwps_jax.settings import DataConfig

VALIDATION_SHARE = 0.1


@dataclasses.dataclass(frozen=True, init=False)
class TaskData:
    """The data of one task.

    A split is a dict of arrays with a common leading axis, of which "image" is the model's input and every
    other entry (usually "label") is for the loss and the metric; or another `Split`, such as images that
    are decoded when they are needed.

    Attributes:
        train: what is trained on.
        validation: what every choice is made on.
        test: read once, at the end.
        classes: number of classes, or None where the task is not a classification.
        note: for the log, how the data came about.
        class_names: names of the classes, whose positions are the labels; () where they have none.
        images: by which the data were loaded; None for arrays.
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
            if isinstance(given, Mapping):
                _check_arrays(given, name)
            split = as_split(given)
            if not len(split):
                raise CwpsError(f"{name} data is empty")
            if classes is not None:
                check_labels(split.fields, classes, name)
            object.__setattr__(self, name, split)
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
            train: dict of arrays.
            test: dict of arrays.
            validation: dict of arrays; by default a tenth of each class of `train` is set apart, chosen by
                the hash of the item, so that it is the same in every run (METHOD, "Setting").
            classes: number of classes; None for anything but classification.
            class_names: names of the classes.
            item_ids: what identifies each training item; by default the bytes of its image.
        """
        if validation is None:
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


def _check_arrays(arrays: Arrays, split: str) -> None:
    if "image" not in arrays:
        raise CwpsError(f"{split} data has no 'image', only {sorted(arrays)}")
    sizes = {name: len(array) for name, array in arrays.items()}
    if len(set(sizes.values())) != 1:
        raise CwpsError(f"{split} data has arrays of different lengths: {sizes}")


def check_labels(fields: Arrays, classes: int, split: str) -> None:
    """Raises CwpsError unless there are labels, and all are classes.

    On the host: integer cross-entropy takes -1 for the last class and returns NaN for a label too high.
    """
    labels = fields.get("label")
    if labels is None:
        raise CwpsError(f"{split} data has no 'label', only {sorted(fields)}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise CwpsError(f"{split} labels are {labels.dtype}: must be whole numbers from 0 to {classes - 1}")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise CwpsError(
            f"{split} label {labels[wrong[0]]} of item {wrong[0]}: must be from 0 to {classes - 1}"
        )
