"""Numbers in few bits: codes for the change from a reference, with one step size per row.

A row of changes is stored as ``step * (code + 1/2 - 2**(bits - 1))`` for integer codes from 0 to 2**bits - 1:
these levels are evenly spaced around zero, which is not a level, so that one bit is a sign. The step size has
the 16 bits of bfloat16 and minimizes a row's squared error (Max 1960). Decoding is one product and one sum in
float32, and no rounding depends on the machine: a stored task is the same to the bit everywhere.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

BITS = (32, 16, 8, 4, 3, 2, 1)  # 32 is float32 without coding
# The step sizes, in standard deviations, that are best for a normal distribution; see Max 1960, table II.
NORMAL_STEPS = {1: 1.596, 2: 0.996, 3: 0.586, 4: 0.335}
STARTS = (1.0, 1.4)  # the second one is for tails that are heavier than a normal distribution's
# The eight bits of each byte of a plane: a look-up is many times as fast as unpacking single bits.
_OF_BYTES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32)
ROUNDS = 3  # of the alternation between levels and step sizes, which has converged by then


@dataclasses.dataclass(frozen=True)
class Codes:
    """An array in few bits, as rows.

    Attributes:
        bits: the bits per number.
        shape: the shape of the array.
        codes: uint8 (rows, bits, ceil(size / 8)), planes of bits; uint8 or uint16 (rows, size) for 8 and 16
            bits.
        steps: bfloat16 (rows,), the step sizes.
    """

    bits: int
    shape: tuple[int, ...]
    codes: np.ndarray
    steps: np.ndarray

    @property
    def size(self) -> int:
        """The number of values of the array."""
        return int(np.prod(self.shape))

    @property
    def parts(self) -> dict[str, np.ndarray]:
        """The arrays that are stored for it."""
        return {"codes": self.codes, "steps": self.steps}

    @property
    def nbytes(self) -> int:
        """The bytes of the stored arrays."""
        return sum(part.nbytes for part in self.parts.values())

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the decoded array."""
        return np.dtype(np.float32)

    @property
    def row_size(self) -> int:
        """The number of values per row."""
        return self.size // len(self.steps) if len(self.steps) else int(np.prod(self.shape[1:]))

    def rows(self, which: Any) -> np.ndarray:
        """Returns the decoded changes of some rows, float32 (rows, size)."""
        levels = _unpacked(self.codes[which], self.bits, self.row_size)
        levels *= self.steps[which].astype(np.float32)[:, None]
        return levels

    def taken(self, which: np.ndarray, bits: int) -> "Codes":
        """Returns codes of some rows, in as many bits or more, which decode to the same values to the bit.

        Args:
            which: int (rows,), the indices of the rows.
            bits: the bits of the new codes; the levels of fewer bits are among those of more bits.
        """
        codes = _packed(_unpacked(self.codes[which], self.bits, self.row_size), bits)
        return Codes(bits, (len(which), *self.shape[1:]), codes, self.steps[which])


def encoded(changes: np.ndarray, bits: int, shape: tuple[int, ...]) -> Codes:
    """Returns changes in few bits.

    Args:
        changes: float32 (rows, size).
        bits: the bits per number: 1, 2, 3, 4, 8 or 16.
        shape: the shape of the array whose rows the changes are.
    """
    steps = step_sizes(changes, bits, axis=1)
    codes = _packed(_levels(changes, steps, bits), bits)
    return Codes(bits, shape, codes, steps[:, 0].astype(jnp.bfloat16))


def rounded(changes: Any, bits: int, axis: int) -> Any:
    """Returns changes as they will be decoded. NumPy arrays give NumPy arrays; the rounding has no gradient.

    Args:
        changes: float32 matrix.
        bits: see `encoded`.
        axis: the axis along which all numbers have the same step size.
    """
    steps = step_sizes(changes, bits, axis)
    return steps * _levels(changes, steps, bits)


def straight_through(values: jax.Array, reference: jax.Array, bits: int) -> jax.Array:
    """Returns (fan-in, channels) values as they will be stored; the derivative is one (Bengio et al. 2013).

    Args:
        values: float32 (fan-in, channels).
        reference: float32 (fan-in, channels), the values from which the stored change is counted.
        bits: see `encoded`.
    """
    stored = reference + rounded(values - reference, bits, axis=0)
    return values + jax.lax.stop_gradient(stored - values)


def step_sizes(changes: Any, bits: int, axis: int) -> Any:
    """Returns the step sizes, float32 with bfloat16's precision, in the shape of `changes`, 1 on `axis`."""
    numpy = changes.__array_namespace__()
    if bits > 4:
        widest = numpy.max(numpy.abs(changes), axis=axis, keepdims=True)
        return _as_stored(widest / np.float32(2 ** (bits - 1) - 1))
    deviation = numpy.sqrt(numpy.mean(changes * changes, axis=axis, keepdims=True))
    best, least = None, None
    for start in STARTS:
        steps = np.float32(start * NORMAL_STEPS[bits]) * deviation
        for _ in range(ROUNDS):
            levels = _levels(changes, steps, bits)
            product, norm = (numpy.sum(levels * each, axis=axis, keepdims=True) for each in (changes, levels))
            steps = product / norm
        steps = _as_stored(steps)
        missing = changes - steps * _levels(changes, steps, bits)
        error = numpy.sum(missing * missing, axis=axis, keepdims=True)
        if best is None:
            best, least = steps, error
        else:
            best, least = numpy.where(error < least, steps, best), numpy.minimum(error, least)
    return best


def _as_stored(steps: Any) -> Any:
    return steps.astype(jnp.bfloat16).astype(np.float32)


def _levels(changes: Any, steps: Any, bits: int) -> Any:
    numpy, half = changes.__array_namespace__(), 2 ** (bits - 1)
    whole = numpy.floor(changes / numpy.where(steps > 0, steps, 1))
    return numpy.clip(whole, -half, half - 1) + np.float32(0.5)


def _packed(levels: np.ndarray, bits: int) -> np.ndarray:
    """Returns the codes of levels, (rows, size)."""
    whole = levels - np.float32(0.5 - 2 ** (bits - 1))
    if bits >= 8:
        return whole.astype(np.uint8 if bits == 8 else np.uint16)
    planes = np.unpackbits(whole.astype(np.uint8)[..., None], axis=2, count=bits, bitorder="little")
    return np.packbits(np.moveaxis(planes, 2, 1), axis=2)


def _unpacked(codes: np.ndarray, bits: int, size: int) -> np.ndarray:
    """Returns the levels of codes, float32 (rows, size)."""
    middle = np.float32(0.5 - 2 ** (bits - 1))
    if bits >= 8:
        return codes.astype(np.float32) + middle
    levels = np.full((len(codes), codes.shape[2], 8), middle)
    for plane in range(bits):
        levels += np.take(_OF_BYTES * np.float32(2**plane), codes[:, plane], axis=0)
    return levels.reshape(len(codes), 8 * codes.shape[2])[:, :size]
