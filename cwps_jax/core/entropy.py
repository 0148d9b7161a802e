"""Changes as integer multiples of one step size, in as many bits as their entropy.

Every change of a task is rounded to a multiple of one step size. Most become zero, and an entropy coder
(asymmetric numeral systems, Duda 2009, by the library constriction) stores the many zeros in a fraction of a
bit each. So a channel costs as many bytes as its change is worth: one step size for all channels gives the
least squared error for their total bytes (the reverse water-filling of rate-distortion theory, Cover and
Thomas, 10.3). The step size is the smallest one with which a task fits its byte budget.
"""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import constriction
import jax
import numpy as np

from cwps_jax.core.coding import Codes
from cwps_jax.errors import CwpsError

BY_BUDGET = 0  # the value of `config.row_bits` that means as few bits per weight as the byte budget allows
MOST = 127  # the largest change that can be stored, in steps; larger ones are clipped to it
DEAD_ZONE = 0.1  # the distance, in steps, by which a change must exceed half a step so as not to become zero
_HALVINGS = 40  # bisections of the interval of the step size's logarithm, or of the dead zone
_ABOVE_ENTROPY = 0.002  # the share by which coded levels are larger than their entropy
_EXTRA_BYTES = 16  # bytes per array beside its coded levels: step, checksum and padding of the last word


@dataclasses.dataclass(frozen=True)
class EntropyCodes(Codes):
    """An array as multiples of one step size, entropy-coded as a whole.

    Attributes:
        bits: 0.
        codes: uint32 (1 + words,), a checksum of the levels, and the words of the coder.
        steps: float32 (1,), or (rows,) if rows of several tasks were joined.
        counts: (levels,), the number of times that each level occurs, from the lowest level to the highest,
            with as many levels below zero as above.
    """

    counts: np.ndarray

    @property
    def parts(self) -> dict[str, np.ndarray]:
        return {**super().parts, "counts": self.counts}

    @property
    def row_size(self) -> int:
        return self.size // self.shape[0] if self.shape[0] else int(np.prod(self.shape[1:]))

    def rows(self, which: Any) -> np.ndarray:
        """Returns the decoded changes of some rows, float32 (rows, size).

        Raises:
            CwpsError: the decoded levels are not those that were coded.
        """
        return self.levels()[which] * np.broadcast_to(self.steps, self.shape[0])[which][:, None]

    def taken(self, which: np.ndarray, bits: int) -> "EntropyCodes":
        """Returns codes of some rows, which decode to the same values to the bit; `bits` has no effect."""
        return together([(self, which)])

    def levels(self) -> np.ndarray:
        """Returns all changes over their steps, int8 (rows, size).

        Raises:
            CwpsError: the decoded levels are not those that were coded.
        """
        highest = len(self.counts) // 2
        decoded = np.zeros(self.size, np.int32)
        if highest:
            decoder = constriction.stream.stack.AnsCoder(np.ascontiguousarray(self.codes[1:]))
            decoded = decoder.decode(_model(self.counts), self.size) - highest
        levels = decoded.astype(np.int8).reshape(self.shape[0], self.row_size)
        if zlib.crc32(levels.tobytes()) != int(self.codes[0]):
            raise CwpsError(
                "entropy-coded rows do not decode to what was stored; use the release of constriction that "
                "wrote them, see constraints.txt"
            )
        return levels


def entropy_coded(
    changes: np.ndarray, step: np.float32, shape: tuple[int, ...], dead_zone: float = DEAD_ZONE
) -> EntropyCodes:
    """Returns changes as multiples of a step size.

    Args:
        changes: float32 (rows, size).
        step: the step size, float32.
        shape: the shape of the array whose rows the changes are.
        dead_zone: the dead zone in steps, see `fitted`.
    """
    return _coded(levels_of(changes, step, dead_zone).astype(np.int8), np.array([step], np.float32), shape)


def together(parts: Sequence[tuple[EntropyCodes, np.ndarray]]) -> EntropyCodes:
    """Returns rows of several arrays as one array, which decode to the same values to the bit.

    Args:
        parts: for each array its codes, and the indices of the rows to take, int (rows,).
    """
    levels = np.concatenate([codes.levels()[which] for codes, which in parts])
    steps = np.concatenate([np.broadcast_to(codes.steps, codes.shape[0])[which] for codes, which in parts])
    one = steps[:1] if len(steps) and (steps == steps[0]).all() else steps
    return _coded(levels, one, (len(levels), *parts[0][0].shape[1:]))


def levels_of(changes: Any, step: Any, dead_zone: float = DEAD_ZONE) -> Any:
    """Returns changes over the step size as float32 integers; NumPy arrays give NumPy arrays."""
    numpy = changes.__array_namespace__()
    size = numpy.floor(numpy.abs(changes) / step + np.float32(0.5 - dead_zone))
    return numpy.sign(changes) * numpy.clip(size, 0, MOST)


def seen_through(values: jax.Array, reference: jax.Array, step: jax.Array) -> jax.Array:
    """Returns values of any shape as they will be stored; the derivative is one (Bengio et al. 2013).

    Args:
        values: float32.
        reference: float32 of the same shape, the values from which the stored change is counted.
        step: the step size, float32 ().
    """
    stored = reference + step * levels_of(values - reference, step)
    return values + jax.lax.stop_gradient(stored - values)


def fitted(changes: Mapping[str, np.ndarray], allowance: float, step: Any = None) -> tuple[Any, float]:
    """Returns the smallest step size and the dead zone, in steps, with which changes fit.

    Args:
        changes: {path: float32 array}, all arrays that share the step size.
        allowance: the bytes for all of them.
        step: a step size that is kept, so that the dead zone grows until the changes fit; None to search it.

    Raises:
        CwpsError: the changes do not fit even as zeros.
    """
    allowance = allowance / (1 + _ABOVE_ENTROPY) - _EXTRA_BYTES * len(changes)
    ordered = [np.sort(each, axis=None) for each in changes.values()]
    largest = max((float(max(-each[0], each[-1])) for each in ordered if each.size), default=0.0)
    largest = largest or 1.0  # If all changes are zero, any step size will do.
    fits = lambda step, dead: sum(_bytes(each, step, dead) for each in ordered) <= allowance
    if not fits(np.float32(4 * largest), DEAD_ZONE):
        raise CwpsError(
            f"the byte budget leaves {allowance:.0f} bytes for channels, in which no change can be told; "
            "take a larger config.byte_budget"
        )
    if step is not None:
        if fits(step, DEAD_ZONE):
            return step, DEAD_ZONE
        narrow, wide = DEAD_ZONE, 1 + largest / float(step)
        for _ in range(_HALVINGS):
            middle = (narrow + wide) / 2
            narrow, wide = (narrow, middle) if fits(step, middle) else (middle, wide)
        return step, wide
    low, high = np.float32(largest / MOST), np.float32(4 * largest)
    if fits(low, DEAD_ZONE):
        return low, DEAD_ZONE
    for _ in range(_HALVINGS):
        between = np.sqrt(low) * np.sqrt(high)
        low, high = (low, between) if fits(between, DEAD_ZONE) else (between, high)
    return high, DEAD_ZONE


def _bytes(ordered: np.ndarray, step: np.float32, dead_zone: float) -> float:
    """Returns the bytes of sorted changes: the entropy of their levels, and the table of levels' counts."""
    edges = float(step) * (np.arange(MOST) + 0.5 + dead_zone)
    above = ordered.size - np.searchsorted(ordered, edges.astype(np.float32))
    below = np.searchsorted(ordered, -edges.astype(np.float32), side="right")
    counts = np.concatenate([-np.diff(above, append=0), -np.diff(below, append=0)])
    counts = np.append(counts, ordered.size - counts.sum())
    occurring = counts[counts > 0]
    entropy = -float(np.sum(occurring * np.log2(occurring / max(ordered.size, 1)))) / 8
    reached = max(np.count_nonzero(above), np.count_nonzero(below))
    return entropy + (2 * reached + 1) * np.min_scalar_type(ordered.size).itemsize


def _coded(levels: np.ndarray, steps: np.ndarray, shape: tuple[int, ...]) -> EntropyCodes:
    highest = int(np.abs(levels.astype(np.int16)).max(initial=0))
    whole = levels.ravel().astype(np.int32) + highest
    counts = np.bincount(whole, minlength=2 * highest + 1)
    words = np.empty(0, np.uint32)
    if highest:
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(whole, _model(counts))
        words = coder.get_compressed()
    check = np.array([zlib.crc32(levels.tobytes())], np.uint32)
    return EntropyCodes(
        bits=BY_BUDGET,
        shape=shape,
        codes=np.concatenate([check, words]),
        steps=steps,
        counts=counts.astype(np.min_scalar_type(int(counts.max()))),
    )


def _model(counts: np.ndarray) -> Any:
    counts = counts.astype(np.float64)
    return constriction.stream.model.Categorical(counts / counts.sum(), perfect=False)
