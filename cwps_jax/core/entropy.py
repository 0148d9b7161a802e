"""Changes as integer multiples of one step size, in as many bits as their entropy.

Every change of a task is rounded to a multiple of one step size, its level; the changes of 3 x 3 taps are
written as frequencies first (`taps.py`). Most levels are zero, and an entropy coder (asymmetric numeral
systems, Duda 2009, by the library constriction) stores the many zeros in a fraction of a bit each. So a
channel costs as many bytes as its change is worth: one step size for all channels gives the least squared
error for their total bytes (the reverse water-filling of rate-distortion theory, Cover and Thomas, 10.3). The
step size is the smallest one with which a task fits its byte budget.
"""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import constriction
import jax
import numpy as np

from cwps_jax.core.coding import Codes
from cwps_jax.core.taps import by_class, frequencies, from_classes, taps
from cwps_jax.errors import CwpsError

BY_BUDGET = 0  # the value of `config.row_bits` that means as few bits per weight as the byte budget allows
MOST = 127  # the largest change that can be stored, in steps; larger ones are clipped to it
DEAD_ZONE = 0.1  # the distance, in steps, by which a change must exceed half a step so as not to become zero
_HALVINGS = 40  # bisections of the interval of the step size's logarithm, or of the dead zone
_ABOVE_ENTROPY = 0.002  # the share by which coded levels are larger than their entropy
_EXTRA_BYTES = 16  # bytes per array beside its coded levels: step, checksum and padding of the last word
_DIFFERENT = (
    "entropy-coded rows do not decode to what was stored; use the release of constriction that wrote them, "
    "see constraints.txt"
)
_TABLE = "magnitudes"  # the stored name of a table, before its number


@dataclasses.dataclass(frozen=True)
class EntropyCodes(Codes):
    """An array as multiples of one step size, entropy-coded as a whole.

    Attributes:
        bits: 0.
        codes: uint32 (1 + words,), a checksum of the levels, and the words of the coder.
        steps: float32 (1,), or (rows,) if rows of several tasks were joined.
        tables: the number of times that each magnitude of a level occurs, (magnitudes,), from zero on: one
            table for all levels, or one for each class of frequencies if the levels are those of `core.taps`.
    """

    tables: tuple[np.ndarray, ...]

    @property
    def parts(self) -> dict[str, np.ndarray]:
        return {**super().parts, **{f"{_TABLE}{number}": one for number, one in enumerate(self.tables)}}

    @property
    def row_size(self) -> int:
        return self.size // self.shape[0] if self.shape[0] else int(np.prod(self.shape[1:]))

    @property
    def of_taps(self) -> bool:
        """Whether the levels are those of frequencies, see `core.taps`."""
        return len(self.tables) > 1

    def rows(self, which: Any) -> np.ndarray:
        """Returns the decoded changes of some rows, float32 (rows, size).

        Raises:
            CwpsError: the decoded levels are not those that were coded.
        """
        levels = self.levels()[which]
        if self.of_taps:
            levels = taps(levels.astype(np.int16), axis=1)
        return levels * np.broadcast_to(self.steps, self.shape[0])[which][:, None]

    def taken(self, which: np.ndarray, bits: int) -> "EntropyCodes":
        """Returns codes of some rows, which decode to the same values to the bit; `bits` has no effect."""
        return together([(self, which)])

    def levels(self) -> np.ndarray:
        """Returns all levels, int8 (rows, size).

        Raises:
            CwpsError: the decoded levels are not those that were coded.
        """
        sizes = [int(np.sum(table, dtype=np.int64)) for table in self.tables]
        if sum(sizes) != self.size:
            raise CwpsError(_DIFFERENT)
        decoder = constriction.stream.stack.AnsCoder(np.ascontiguousarray(self.codes[1:]))
        decoded = [
            _decoded(decoder, _signed(table), size) for table, size in zip(self.tables, sizes, strict=True)
        ]
        levels, shape = np.concatenate(decoded).astype(np.int8), (self.shape[0], self.row_size)
        levels = from_classes(levels, shape) if self.of_taps else levels.reshape(shape)
        return _checked(levels, self.codes[0])


def entropy_coded(
    changes: np.ndarray,
    step: np.float32,
    shape: tuple[int, ...],
    dead_zone: float = DEAD_ZONE,
    of_taps: bool = False,
) -> EntropyCodes:
    """Returns changes as multiples of a step size.

    Args:
        changes: float32 (rows, size).
        step: the step size, float32.
        shape: the shape of the array whose rows the changes are.
        dead_zone: the dead zone in steps, see `fitted`.
        of_taps: whether the changes are coded as frequencies, see `core.taps`.
    """
    levels = levels_of(frequencies(changes, axis=1) if of_taps else changes, step, dead_zone)
    return _coded(levels.astype(np.int8), np.array([step], np.float32), shape, of_taps)


def from_parts(shape: tuple[int, ...], parts: Mapping[str, np.ndarray]) -> EntropyCodes:
    """Returns codes from their stored `parts`; those of pools of format 6 have one table of signed levels."""
    codes, steps = parts["codes"], parts["steps"]
    if "counts" not in parts:
        tables = tuple(parts[f"{_TABLE}{number}"] for number in range(len(parts) - 2))
        return EntropyCodes(BY_BUDGET, shape, codes, steps, tables)
    decoder = constriction.stream.stack.AnsCoder(np.ascontiguousarray(codes[1:]))
    levels = _decoded(decoder, parts["counts"], int(np.prod(shape))).astype(np.int8)
    rows = _checked(levels.reshape(shape[0], int(np.prod(shape[1:]))), codes[0])
    return _coded(rows, steps, shape, of_taps=False)


def together(parts: Sequence[tuple[EntropyCodes, np.ndarray]]) -> EntropyCodes:
    """Returns rows of several arrays as one array, which decode to the same values to the bit.

    Args:
        parts: for each array its codes, and the indices of the rows to take, int (rows,). All of them are
            `of_taps`, or none.
    """
    levels = np.concatenate([codes.levels()[which] for codes, which in parts])
    steps = np.concatenate([np.broadcast_to(codes.steps, codes.shape[0])[which] for codes, which in parts])
    one = steps[:1] if len(steps) and (steps == steps[0]).all() else steps
    first = parts[0][0]
    return _coded(levels, one, (len(levels), *first.shape[1:]), first.of_taps)


def levels_of(changes: Any, step: Any, dead_zone: float = DEAD_ZONE) -> Any:
    """Returns changes over the step size as float32 integers; NumPy arrays give NumPy arrays."""
    numpy = changes.__array_namespace__()
    size = numpy.floor(numpy.abs(changes) / step + np.float32(0.5 - dead_zone))
    return numpy.sign(changes) * numpy.clip(size, 0, MOST)


def seen_through(
    values: jax.Array, reference: jax.Array, step: jax.Array, of_taps: bool = False
) -> jax.Array:
    """Returns values of any shape as they will be stored; the derivative is one (Bengio et al. 2013).

    Args:
        values: float32.
        reference: float32 of the same shape, the values from which the stored change is counted.
        step: the step size, float32 ().
        of_taps: whether the change is coded as frequencies; its first axes are then the fan-in's.
    """
    change = values - reference
    levels = taps(levels_of(frequencies(change), step)) if of_taps else levels_of(change, step)
    stored = reference + step * levels
    return values + jax.lax.stop_gradient(stored - values)


def coded_alike(changes: np.ndarray, axis: int, of_taps: bool) -> list[np.ndarray]:
    """Returns the numbers of an array that are coded with one table each, as `fitted` takes them.

    Args:
        changes: float32.
        axis: the fan-in's axis, see `core.taps`.
        of_taps: whether the array is coded as frequencies.
    """
    return by_class(frequencies(changes, axis), axis) if of_taps else [changes]


def fitted(
    changes: Mapping[str, Sequence[np.ndarray]], allowance: float, step: Any = None
) -> tuple[Any, float]:
    """Returns the smallest step size and the dead zone, in steps, with which changes fit.

    Args:
        changes: {path: float32 arrays}, what `coded_alike` returns of all arrays that share the step size.
        allowance: the bytes for all of them.
        step: a step size that is kept, so that the dead zone grows until the changes fit; None to search it.

    Raises:
        CwpsError: the changes do not fit even as zeros.
    """
    allowance = allowance / (1 + _ABOVE_ENTROPY) - _EXTRA_BYTES * len(changes)
    ordered = [np.sort(np.abs(each), axis=None) for parts in changes.values() for each in parts]
    largest = max((float(each[-1]) for each in ordered if each.size), default=0.0)
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
    """Returns the bytes of sorted magnitudes: the entropy of their levels, and the table of counts."""
    edges = float(step) * (np.arange(MOST) + 0.5 + dead_zone)
    above = ordered.size - np.searchsorted(ordered, edges.astype(np.float32))
    counts = -np.diff(above, prepend=ordered.size, append=0)
    occurring = counts[counts > 0]
    entropy = -float(np.sum(occurring * np.log2(occurring / max(ordered.size, 1))))
    signs = int(above[0])
    return (entropy + signs) / 8 + (np.count_nonzero(above) + 1) * np.min_scalar_type(ordered.size).itemsize


def _coded(levels: np.ndarray, steps: np.ndarray, shape: tuple[int, ...], of_taps: bool) -> EntropyCodes:
    coder = constriction.stream.stack.AnsCoder()
    tables: list[np.ndarray] = []
    classes = by_class(levels, axis=1) if of_taps else [levels.ravel()]
    for one in reversed(classes):  # what is coded last is decoded first
        whole = one.astype(np.int32)
        table = np.bincount(np.abs(whole), minlength=1)
        tables.insert(0, table.astype(np.min_scalar_type(int(table.max()))))
        if len(table) > 1:
            coder.encode_reverse(whole + len(table) - 1, _model(_signed(table)))
    check = np.array([zlib.crc32(levels.tobytes())], np.uint32)
    codes = np.concatenate([check, coder.get_compressed()])
    return EntropyCodes(BY_BUDGET, shape, codes, steps, tuple(tables))


def _decoded(decoder: Any, counts: np.ndarray, size: int) -> np.ndarray:
    """Returns a decoder's next levels, int32 (size,); each occurs `counts` times, from the lowest on."""
    highest = len(counts) // 2
    return decoder.decode(_model(counts), size) - highest if highest else np.zeros(size, np.int32)


def _signed(table: np.ndarray) -> np.ndarray:
    """Returns twice the expected number of each level from a table of magnitudes: signs are as likely."""
    half = table[1:].astype(np.int64)
    return np.concatenate([half[::-1], [2 * int(table[0])], half])


def _checked(levels: np.ndarray, checksum: Any) -> np.ndarray:
    if zlib.crc32(levels.tobytes()) != int(checksum):
        raise CwpsError(_DIFFERENT)
    return levels


def _model(counts: np.ndarray) -> Any:
    counts = counts.astype(np.float64)
    return constriction.stream.model.Categorical(counts / counts.sum(), perfect=False)
