"""Many arrays as one, and back."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def joined(leaves: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the bytes of arrays one after the other, because Orbax takes up to a millisecond per array."""
    whole, offset = np.empty(sum(leaf.nbytes for leaf in leaves), np.uint8), 0
    for leaf in leaves:
        whole[offset : offset + leaf.nbytes] = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
        offset += leaf.nbytes
    return whole


def parted(whole: np.ndarray, described: Sequence[Any]) -> list[np.ndarray]:
    """Returns the arrays whose bytes were joined. Raises ValueError if their number differs."""
    leaves, offset = [], 0
    for name, shape in described:
        dtype, count = np.dtype(name), math.prod(shape)
        leaves.append(np.frombuffer(whole, dtype, count, offset).reshape(shape))
        offset += count * dtype.itemsize
    return leaves
