"""Weights and images that anybody can make again: the same here and in tests/test_parity.py.

Fixtures hold keys, shapes and the reference's logits; the weights themselves come from each key's hash.
"""

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

COUNTER = "num_batches_tracked"


def weights(shapes: Mapping[str, Sequence[int]], gain: float = 1.0) -> dict[str, np.ndarray]:
    """Returns {key: array}, float32, int64 zeros for batch counters.

    Args:
        shapes: of the arrays.
        gain: of the norms, chosen so that a model's signals neither die nor explode.
    """
    return {key: _array(key, tuple(shape), gain) for key, shape in shapes.items()}


def images(shape: Sequence[int]) -> np.ndarray:
    """Returns images (batch, height, width, channels) with noise at all scales, as photos have, float32."""
    batch, height, width, channels = shape
    rng = np.random.default_rng(zlib.crc32(repr(tuple(shape)).encode()))
    total = np.zeros(shape, np.float32)
    for side in (1, 4, 16, 64):
        noise = rng.standard_normal((batch, -(-height // side), -(-width // side), channels), np.float32)
        total += noise.repeat(side, 1).repeat(side, 2)[:, :height, :width]
    return total / 2


def _array(key: str, shape: tuple[int, ...], gain: float) -> np.ndarray:
    if key.endswith(COUNTER):
        return np.zeros(shape, np.int64)
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    if key.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if len(shape) == 1 and key.endswith(("weight", "scale")):
        return (gain * rng.uniform(0.5, 1.0, shape)).astype(np.float32)
    noise = rng.standard_normal(shape, np.float32)
    if len(shape) == 1 or key.endswith("bias"):
        return noise * np.float32(0.5)
    if shape[0] == 1:  # a class token, position embeddings: so small that a norm's epsilon shows
        return noise * np.float32(0.02)
    fan_in = math.prod(shape[:-1] if key.endswith("kernel") else shape[1:])
    return noise * np.float32(math.sqrt(2 / fan_in))
