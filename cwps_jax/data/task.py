"""`TaskData`: one task's training, validation and test arrays."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from cwps_jax.errors import CwpsError

Arrays = Mapping[str, np.ndarray]

VALIDATION_SHARE = 0.1


@dataclasses.dataclass(frozen=True)
class TaskData:
    """The data of one task, in memory.

    Every split is a dict of arrays with a common leading axis; "image" is the model's input and every
    other entry (usually "label") is for the loss and the metric.

    Attributes:
        train: what is trained on.
        validation: what every choice is made on.
        test: read once, at the end.
        classes: number of classes, or None where the task is not a classification.
    """

    train: Arrays
    validation: Arrays
    test: Arrays
    classes: int | None = None

    def __post_init__(self) -> None:
        for split in ("train", "validation", "test"):
            arrays = getattr(self, split)
            if "image" not in arrays:
                raise CwpsError(f"{split} data has no 'image', only {sorted(arrays)}")
            sizes = {name: len(array) for name, array in arrays.items()}
            if len(set(sizes.values())) != 1:
                raise CwpsError(f"{split} data has arrays of different lengths: {sizes}")
            if not sizes["image"]:
                raise CwpsError(f"{split} data is empty")
            if self.classes is not None:
                _check_labels(arrays, self.classes, split)

    @classmethod
    def from_arrays(
        cls,
        train: Arrays,
        test: Arrays,
        *,
        validation: Arrays | None = None,
        classes: int | None = None,
        item_ids: Sequence[bytes] | None = None,
    ) -> "TaskData":
        """Returns a task from a training and a test set.

        Args:
            train: dict of arrays.
            test: dict of arrays.
            validation: dict of arrays; by default a tenth of each class of `train` is set apart, chosen by
                the hash of the item, so that it is the same in every run (METHOD, "Setting").
            classes: number of classes; None for anything but classification.
            item_ids: what identifies each training item; by default the bytes of its image.
        """
        if validation is None:
            ids = item_ids if item_ids is not None else [image.tobytes() for image in train["image"]]
            groups = train["label"] if classes is not None else np.zeros(len(ids), np.int32)
            held_out = held_out_items(ids, groups, VALIDATION_SHARE)
            validation = {name: array[held_out] for name, array in train.items()}
            train = {name: array[~held_out] for name, array in train.items()}
        return cls(train, validation, test, classes)


def held_out_items(ids: Sequence[bytes], groups: np.ndarray, share: float) -> np.ndarray:
    """Returns a boolean mask of the items with the lowest hashes of each group, at least one a group.

    Args:
        ids: what identifies each item.
        groups: each item's group, such as its class.
        share: share of each group to hold out, rounded to whole items.
    """
    rank = np.array([int.from_bytes(hashlib.sha256(one).digest()[:8], "big") for one in ids], np.uint64)
    held_out = np.zeros(len(ids), bool)
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        count = max(1, round(share * len(members)))
        held_out[members[np.argsort(rank[members], kind="stable")[:count]]] = True
    return held_out


def _check_labels(arrays: Arrays, classes: int, split: str) -> None:
    # On the host: integer cross-entropy takes -1 for the last class and returns NaN for a label too high.
    labels = arrays.get("label")
    if labels is None:
        raise CwpsError(f"{split} data has no 'label', only {sorted(arrays)}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise CwpsError(f"{split} labels are {labels.dtype}: must be whole numbers from 0 to {classes - 1}")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise CwpsError(
            f"{split} label {labels[wrong[0]]} of item {wrong[0]}: must be from 0 to {classes - 1}"
        )
