"""Checks of arrays that come from Python, made when `TaskData` is made."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cwps_jax.data.split import Arrays, ArraySplit, Split
from cwps_jax.errors import CwpsError

# Images that are looked through at once: the answer is a copy as large as they are.
AT_ONCE = 1024


def checked_split(given: Any, name: str, classes: int | None) -> Split:
    """Returns a split of a dict of arrays or lists after checking them, or the given split.

    Args:
        given: a dict with "image", or a `Split`.
        name: of the split, for messages.
        classes: number of classes; None if the task is not a classification.

    Raises:
        CwpsError: it is neither; or it is empty, has arrays of different lengths, images that are not finite
            numbers, or labels that are not classes.
    """
    if isinstance(given, Mapping):
        given = ArraySplit(checked_arrays(given, name, classes))
    elif not hasattr(given, "fields"):
        raise CwpsError(
            f"{name} data is a {type(given).__name__}: give a dict of arrays, {{'image': ..., 'label': ...}}"
        )
    if not len(given):
        raise CwpsError(f"{name} data is empty")
    if isinstance(given, ArraySplit):
        _check_finite(given["image"], f"{name} image")
    if classes is not None:
        check_labels(given.fields, classes, name)
    return given


def checked_arrays(given: Arrays, name: str, classes: int | None) -> dict[str, np.ndarray]:
    """Returns a dict of arrays or lists as NumPy arrays, with images in the type that JAX would give them.

    Class labels of shape (n, 1) become (n,). See `checked_split`.
    """
    if "image" not in given:
        raise CwpsError(f"{name} data has no 'image', only {sorted(given)}: name the model's input so")
    arrays = {key: _array(value, f"{name} {key!r}") for key, value in given.items()}
    sizes = {key: len(array) for key, array in arrays.items()}
    if len(set(sizes.values())) != 1:
        raise CwpsError(f"{name} data has arrays of different lengths: {sizes}")
    images = arrays["image"]
    if not (jnp.issubdtype(images.dtype, jnp.number) or images.dtype == bool):
        raise CwpsError(f"{name} images are {images.dtype}: give numbers, such as float32")
    if images.ndim < 2:
        raise CwpsError(
            f"{name} images have the shape {images.shape}: give one array per item, such as (n, height, "
            "width, channels)"
        )
    for key, array in arrays.items():
        if array.dtype.kind not in "biufcV" and not (key == "label" and classes is not None):
            raise CwpsError(
                f"{name} {key!r} is {array.dtype}: no loss can take it; give numbers, or leave it out"
            )
    arrays["image"] = images.astype(jax.dtypes.canonicalize_dtype(images.dtype), copy=False)
    label = arrays.get("label")
    if classes is not None and label is not None and label.ndim == 2 and label.shape[1] == 1:
        arrays["label"] = label[:, 0]
    return arrays


def check_same_images(splits: Mapping[str, Split]) -> None:
    """Raises CwpsError unless the images of all splits have one shape and one type."""
    (first, one), *others = splits.items()
    for name, split in others:
        for what in ("shape", "dtype"):
            wanted, came = getattr(one.image, what), getattr(split.image, what)
            if wanted != came:
                raise CwpsError(
                    f"{name} images have the {what} {came}, {first} images {wanted}: prepare them in one way"
                )


def check_labels(fields: Arrays, classes: int, split: str) -> None:
    """Raises CwpsError unless there are labels, and all are classes.

    They are checked on the host, because integer cross-entropy takes -1 for the last class and returns NaN
    for a label that is too high.
    """
    if "label" not in fields:
        raise CwpsError(f"{split} data has no 'label', only {sorted(fields)}")
    labels = fields["label"]
    if labels.ndim == 2 and np.all(np.count_nonzero(labels, axis=1) == 1) and np.all(labels.max(axis=1) == 1):
        raise CwpsError(f"{split} labels are one-hot, {labels.shape}: give label.argmax(axis=1)")
    if labels.ndim == 2 and labels.shape[1] == 1:
        raise CwpsError(f"{split} labels are a column, {labels.shape}: give label[:, 0], or TaskData classes")
    if labels.ndim != 1:
        raise CwpsError(
            f"{split} labels have the shape {labels.shape}: one class per item is (n,); for several, or one "
            "per pixel, leave classes out and give a loss and a metric of your own"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        remedy = (
            "label.astype(np.int32)"
            if labels.dtype.kind in "bf"
            else "np.unique(label, return_inverse=True)[1]"
        )
        raise CwpsError(
            f"{split} labels are {labels.dtype}: must be whole numbers from 0 to {classes - 1}; see {remedy}"
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        low, high = labels.min(), labels.max()
        raise CwpsError(
            f"{split} label {labels[wrong[0]]} of item {wrong[0]}: must be from 0 to {classes - 1}"
            + _remedy(int(low), int(high), classes, bool(np.any(labels == 0)))
        )


def _remedy(low: int, high: int, classes: int, has_zero: bool) -> str:
    if (low, high) == (1, classes):
        return "; these count from 1: give label - 1"
    if (low, high, classes, has_zero) == (-1, 1, 2, False):
        return "; these are -1 and 1: give (label + 1) // 2"
    if low < 0:
        return f"; leave out what has no class: keep the items with label >= 0 (the lowest is {low})"
    return (
        f"; give classes={high + 1}, or number the labels again by np.unique(label, return_inverse=True)[1]"
    )


def not_finite(array: np.ndarray) -> tuple[int, float] | None:
    """Returns the first item with a value that is not finite, and that value; None if all are finite.

    Args:
        array: (n, ...), of any type.
    """
    if array.dtype.kind not in "fcV":  # bfloat16 is V
        return None
    for first in range(0, len(array), AT_ONCE):
        wrong = np.argwhere(~np.isfinite(array[first : first + AT_ONCE]))
        if len(wrong):
            item = first + int(wrong[0][0])
            return item, float(array[(item, *wrong[0][1:])].real)
    return None


def _check_finite(array: np.ndarray, what: str) -> None:
    found = not_finite(array)
    if found:
        raise CwpsError(f"{what} {found[0]} has a value that is {found[1]}: repair it or leave the item out")


def _array(value: Any, what: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise CwpsError(f"{what}: its items have different shapes; give each the same") from error
    if array.dtype == object:
        raise CwpsError(f"{what}: its items are not numbers, or are of different shapes; give each the same")
    if not array.ndim:
        raise CwpsError(f"{what} is a single {type(value).__name__}: give one value per item")
    return array
