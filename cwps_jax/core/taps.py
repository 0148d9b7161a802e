"""The 3 x 3 taps of a kernel as frequencies: a basis in which fine-tuning's changes need fewer bits.

Neighbouring pixels are alike, so a channel's change, a sum of gradients and so of patches, is smooth over its
taps: most of its energy lies in the mean over the taps. Each axis of three taps is written in the basis of
the discrete cosine transform (Ahmed, Natarajan and Rao 1974), whose directions for three taps are (1, 1, 1),
(1, 0, -1) and (1, -2, 1). `SCALES` are the lengths of a level in these directions. They are whole numbers, so
that the taps of whole levels are whole numbers too, and no machine rounds them.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cwps_jax.core.channels import Layer

TAPS = 9
SCALES = (2, 3, 2)  # A level is 1.2 and 1.4 times as long in the second and third direction.
# The numbers of the frequencies that have a distribution of their own: the mean, the slopes and the others.
CLASSES = ((0,), (1, 3), (2, 4, 5, 6, 7, 8))
_ORDER = [number for one in CLASSES for number in one]
SMOOTH = 3  # the frequencies of the first two classes, whose levels are larger than the others'


def has_taps(layer: Layer, leaf: str) -> bool:
    """Returns whether a leaf is a kernel whose first two axes are 3 x 3 taps, all of one output channel."""
    shape = layer.shapes[0]
    return leaf == layer.path and len(shape) == 4 and shape[:2] == (3, 3) and layer.gate_shape[:2] == (1, 1)


def frequencies(changes: Any, axis: int = 0) -> Any:
    """Returns changes as multiples of the frequencies' levels, in the shape of `changes`.

    Args:
        changes: float32; NumPy arrays give NumPy arrays.
        axis: the fan-in's axis, on which the taps vary slowest: (3, 3, in, out) is as good as (9 in, out).
    """
    mean, slope, bend = (scale * norm for scale, norm in zip(SCALES, (3, 2, 6), strict=True))

    def along(first: Any, second: Any, third: Any) -> tuple[Any, Any, Any]:
        return (
            (first + second + third) / np.float32(mean),
            (first - third) / np.float32(slope),
            (first - 2 * second + third) / np.float32(bend),
        )

    return _by_axes(changes, axis, along)


def taps(levels: Any, axis: int = 0) -> Any:
    """Returns the taps of levels, the inverse of `frequencies`; exact for whole levels of at most 127.

    Args:
        levels: float32, or int16 or larger integers.
        axis: see `frequencies`.
    """

    def along(mean: Any, slope: Any, bend: Any) -> tuple[Any, Any, Any]:
        mean, slope, bend = (scale * each for scale, each in zip(SCALES, (mean, slope, bend), strict=True))
        return mean + slope + bend, mean - 2 * bend, mean - slope + bend

    return _by_axes(levels, axis, along)


def by_class(levels: Any, axis: int = 0) -> list[np.ndarray]:
    """Returns the numbers of each of the `CLASSES`, flat, frequency by frequency; `axis` as above."""
    parted = np.moveaxis(levels.reshape(_parted(levels.shape, axis, TAPS)), axis, 0)
    return [parted[list(numbers)].ravel() for numbers in CLASSES]


def from_classes(levels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Returns levels (rows, fan-in) from those of all classes, one after the other; inverts `by_class`."""
    rows, size = shape
    return in_order(np.moveaxis(levels.reshape(TAPS, rows, size // TAPS), 0, 1).reshape(shape))


def smooth_first(levels: np.ndarray) -> np.ndarray:
    """Returns levels (rows, fan-in) with their frequencies in the order of the classes."""
    return levels.reshape(_parted(levels.shape, 1, TAPS))[:, _ORDER].reshape(levels.shape)


def in_order(levels: Any) -> Any:
    """Inverts `smooth_first`; NumPy arrays give NumPy arrays."""
    parted = levels.reshape(_parted(levels.shape, 1, TAPS))
    return parted[:, np.argsort(_ORDER)].reshape(levels.shape)


def _by_axes(array: Any, axis: int, along: Callable[..., tuple[Any, ...]]) -> Any:
    """Applies a function to the three parts of each of the two axes of taps."""
    numpy = array.__array_namespace__()
    parted = array.reshape(_parted(array.shape, axis, 3, 3))
    for at in (axis, axis + 1):
        parts = [parted[(slice(None),) * at + (number,)] for number in range(3)]
        parted = numpy.stack(along(*parts), axis=at)
    return parted.reshape(array.shape)


def _parted(shape: tuple[int, ...], axis: int, *taps: int) -> tuple[int, ...]:
    return (*shape[:axis], *taps, math.prod(shape[axis:]) // TAPS)
