"""The forms in which rows lie on the device, and their decoding there, to the bit as the pool decodes them.

A kind is the name of a form. "plain" means rows without coding. "halves4" means `core.coding.Codes` of 4
bits: planes of bits (integers for 8 and 16 bits), times the row's step size. "levels4" means rows that were
entropy-coded and could not be decoded one by one: integer multiples of the step, in the fewest planes of bits
that hold the row's largest multiple. "taps4_2" is the same for frequencies, see `core.taps`: 4 bits for means
and slopes, 2 for the others, which are smaller. "start" has no table: the row is the pre-trained model's
channel itself.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cwps_jax.core.coding import Codes
from cwps_jax.core.entropy import EntropyCodes
from cwps_jax.core.taps import SMOOTH, TAPS, in_order, smooth_first, taps

START, PLAIN = "start", "plain"
Widths = tuple[tuple[int, ...], ...]
# Bits of levels; more widths would save little, and each is one more look-up. Without bits all are zero.
WIDTHS: Widths = ((2,), (4,), (8,))
TAPS_WIDTHS: Widths = ((2, 0), (4, 0), (4, 2), (4, 4), (8, 4), (8, 8))
KINDS = (
    START,
    PLAIN,
    *(f"halves{bits}" for bits in (1, 2, 3, 4, 8, 16)),
    *(f"levels{bits}" for (bits,) in WIDTHS),
    *(f"taps{smooth}_{other}" for smooth, other in TAPS_WIDTHS),
)
NUMBER = {kind: number for number, kind in enumerate(KINDS)}

Parts = dict[str, Any]


def by_kind(stored: Any) -> tuple[dict[str, Parts], np.ndarray, np.ndarray]:
    """Returns the rows of a leaf as they will lie on the device.

    Args:
        stored: `Codes`, or an array (rows, fan-in).

    Returns:
        {kind: its parts, each (rows of that kind, ...)}; the number of each row's kind, int32 (rows,); and
        each row's place among the rows of that kind, int32 (rows,).
    """
    if not isinstance(stored, Codes):
        rows = np.asarray(stored)
        return {PLAIN: {"rows": rows}}, np.full(len(rows), NUMBER[PLAIN], np.int32), _counting(len(rows))
    if not isinstance(stored, EntropyCodes):
        kind = f"halves{stored.bits}"
        parts = {"codes": np.asarray(stored.codes), "steps": np.asarray(stored.steps)}
        count = len(stored.steps)
        return {kind: parts}, np.full(count, NUMBER[kind], np.int32), _counting(count)
    levels = stored.levels()
    steps = np.broadcast_to(stored.steps, len(levels)).astype(np.float32)
    name, all_widths = ("taps", TAPS_WIDTHS) if stored.of_taps else ("levels", WIDTHS)
    sizes = _sizes(name, levels.shape[1])
    ordered = smooth_first(levels) if stored.of_taps else levels
    ends = np.cumsum([*sizes.values()])[:-1]
    divided = dict(zip(sizes, np.split(ordered, ends, axis=1), strict=True))
    largest = [np.abs(part.astype(np.int16)).max(axis=1, initial=0) for part in divided.values()]
    left = np.any(largest, axis=0)  # rows of zeros are those of "start"
    found: dict[str, Parts] = {}
    kinds, places = np.zeros(len(levels), np.int32), np.zeros(len(levels), np.int32)
    for widths in all_widths:
        holds = [size <= _most(bits) for size, bits in zip(largest, widths, strict=True)]
        rows = np.flatnonzero(left & np.all(holds, axis=0))
        left[rows] = False
        kind = name + "_".join(map(str, widths))
        planes = zip(divided.items(), widths, strict=True)
        found[kind] = {part: _planes(those[rows], bits) for (part, those), bits in planes if bits}
        found[kind]["steps"] = steps[rows]
        kinds[rows], places[rows] = NUMBER[kind], _counting(len(rows))
    return found, kinds, places


def rows_of(kind: str, parts: Parts, start: jax.Array, zero: jax.Array) -> jax.Array:
    """Returns rows of one kind, (rows, fan-in); traced.

    Args:
        kind: the kind's name.
        parts: the parts of these rows on the device.
        start: (rows, fan-in), the pre-trained model's channels that the rows are changes of.
        zero: int32 (), a zero whose value the compiler does not know.
    """
    if kind == PLAIN:
        return parts["rows"]
    name, *widths = re.findall(r"[a-z]+|\d+", kind)
    numbers = []
    for (part, count), bits in zip(_sizes(name, start.shape[1]).items(), map(int, widths), strict=True):
        if not bits:
            numbers.append(jnp.zeros((len(start), count), jnp.float32))
            continue
        middle = np.float32(-(2 ** (bits - 1)) + (0.5 if name == "halves" else 0))
        numbers.append(whole(parts[part], bits, count) + middle)
    if name == "taps":
        numbers = [taps(in_order(jnp.concatenate(numbers, axis=1)), axis=1)]
    return start + change(numbers[0], parts["steps"][:, None], zero)


def whole(codes: jax.Array, bits: int, size: int) -> jax.Array:
    """Returns codes as float32 numbers, (rows, size); traced.

    Args:
        codes: (rows, bits, bytes), or integers (rows, size) if `bits` is 8 or 16.
        bits: the bits of a code.
        size: the number of values per row.
    """
    if codes.ndim == 3:
        single = (codes[..., None] >> np.arange(7, -1, -1, dtype=np.uint8)) & np.uint8(1)
        places = np.arange(bits, dtype=np.uint8)[:, None, None]
        codes = jnp.sum(single << places, axis=1, dtype=jnp.uint8).reshape(len(codes), -1)[:, :size]
    return codes.astype(jnp.float32)


def change(numbers: jax.Array, steps: jax.Array, zero: jax.Array) -> jax.Array:
    """Returns the float32 changes that are numbers times their step sizes; traced.

    Args:
        numbers: float32.
        steps: the step sizes, of a shape that broadcasts against the numbers.
        zero: see `rows_of`.
    """
    product = numbers * steps.astype(jnp.float32)
    # A compiler may fuse a product and the sum after it, and round once instead of twice. An operation on
    # integers between them prevents that.
    return jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(product, jnp.int32) ^ zero, jnp.float32)


def parts_bytes(parts: Mapping[str, Any]) -> int:
    """Returns the bytes of arrays."""
    return sum(part.nbytes for part in parts.values())


def _sizes(name: str, size: int) -> dict[str, int]:
    """Returns the parts that hold a row's numbers, {part: numbers in it}."""
    smooth = size * SMOOTH // TAPS
    return {"codes": smooth, "others": size - smooth} if name == "taps" else {"codes": size}


def _most(bits: int) -> int:
    return 2 ** (bits - 1) - 1 if bits else 0


def _planes(levels: np.ndarray, bits: int) -> np.ndarray:
    whole = (levels.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    if bits == 8:
        return whole
    single = np.unpackbits(whole[..., None], axis=2, count=bits, bitorder="little")
    return np.packbits(np.moveaxis(single, 2, 1), axis=2)


def _counting(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.int32)
