"""A task's leaves in few bits, and back: the bits of each leaf, and the reference of its change.

Channels and a method's own matrices have `bits` bits, with a step size for each output channel. Norms, other
vectors and heads matter more: they have at least 8 bits, and norm statistics 16. Leaves that the pre-trained
model's backbone has too are stored as the change since then. Where a byte budget sets the
bits, the statistics of batch norms are not stored, but folded into scales and biases (`core.folding`).
"""

import dataclasses
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from cwps_jax.core.accounting import count_stored
from cwps_jax.core.budgets import FLOAT32_BYTES
from cwps_jax.core.channels import Layout, to_columns
from cwps_jax.core.coding import Codes, encoded
from cwps_jax.core.entropy import BY_BUDGET, coded_alike, entropy_coded, fitted
from cwps_jax.core.folding import MOST_ERROR, folded, largest_error
from cwps_jax.core.taps import has_taps
from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.methods.channels import opened
from cwps_jax.methods.method import Stored
from cwps_jax.search.models import Rows

VECTOR_BITS, STATISTICS_BITS = 8, 16
NO_NORMS: Mapping[str, float] = types.MappingProxyType({})

Leaves = Mapping[str, np.ndarray | Codes]


def coded(
    layout: Layout,
    stored: Stored,
    bits: int,
    start: Rows,
    before: Mapping[str, Any],
    byte_budget: float = 0.0,
    folding: Mapping[str, float] = NO_NORMS,
) -> Stored:
    """Returns the stored arrays of a task in few bits.

    Args:
        layout: the backbone's.
        stored: the arrays in float32.
        bits: bits of a weight; 32 changes nothing, 0 gives channels the bits that the budget leaves for them.
        start: the pre-trained model's rows.
        before: its variables without the head's parameters, a flat dict.
        byte_budget: largest byte_ratio of everything, if bits is 0.
        folding: {path of a batch norm: its epsilon}, those that may be stored without statistics.

    Raises:
        CwpsError: the other arrays leave nothing for channels.
    """
    if bits == 32:
        return stored
    own = {path: np.asarray(leaf) for path, leaf in flatten(stored.own).items()}
    changes: dict[str, np.ndarray] = {}
    for layer in layout.layers if stored.rows else ():
        channels = opened(layer, own)
        for leaf in layer.leaves:
            changes[leaf] = np.asarray(stored.rows[leaf], np.float32) - start[leaf][channels]
    in_bits = lambda leaves: {
        path: _own_leaf(layout, path, leaf, bits, before) for path, leaf in leaves.items()
    }
    if bits == BY_BUDGET:
        as_codes = in_bits(folded(own, before, folding))
        error = largest_error(own, DecodedOwn(as_codes, lambda: before), before, folding)
        if not error <= MOST_ERROR:  # nor if it is no number
            as_codes = in_bits(own)
        beside = count_stored(layout, as_codes, {})
        allowance = (byte_budget - beside.byte_ratio) * FLOAT32_BYTES * layout.backbone_parameters
        rows = _fitted_rows(layout, changes, allowance, stored.step) if changes else {}
    else:
        as_codes = in_bits(own)
        rows = {leaf: encoded(change, bits, change.shape) for leaf, change in changes.items()}
    return dataclasses.replace(stored, own=unflatten(as_codes), rows=rows)


def _fitted_rows(
    layout: Layout, changes: Mapping[str, np.ndarray], allowance: float, step: np.float32 | None
) -> dict[str, np.ndarray | Codes]:
    of_taps = {leaf: has_taps(layer, leaf) for layer in layout.layers for leaf in layer.leaves}
    alike = {leaf: coded_alike(change, 1, of_taps[leaf]) for leaf, change in changes.items()}
    step, dead_zone = fitted(alike, allowance, step)
    return {
        leaf: entropy_coded(change, step, change.shape, dead_zone, of_taps[leaf])
        for leaf, change in changes.items()
    }


def _own_leaf(
    layout: Layout, path: str, leaf: np.ndarray, bits: int, before: Mapping[str, Any]
) -> np.ndarray | Codes:
    kind, _, name = path.partition("/")
    if not leaf.size or not leaf.ndim or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    reference = _reference(path, leaf.shape, before)
    changes = np.asarray(leaf, np.float32) - reference
    if kind == "other":
        codes = encoded(changes.reshape(1, -1), max(bits, STATISTICS_BITS), leaf.shape)
        decoded = reference + codes.rows(slice(None)).reshape(leaf.shape)
        # A variance near zero must not become negative: its square root would be no number.
        below = ((decoded < 0) & (leaf >= 0)).reshape(1, -1)
        return dataclasses.replace(codes, codes=codes.codes + below.astype(codes.codes.dtype))
    is_head = kind == "params" and name not in layout.backbone_shapes
    if leaf.ndim == 1 or (kind == "params" and not is_head):
        return encoded(changes.reshape(1, -1), max(bits, VECTOR_BITS), leaf.shape)
    in_bits = max(bits, VECTOR_BITS) if is_head else bits or VECTOR_BITS
    return encoded(changes.reshape(-1, leaf.shape[-1]).T, in_bits, leaf.shape)


def _reference(path: str, shape: tuple[int, ...], before: Mapping[str, Any]) -> Any:
    """Returns the reference of a leaf's change: zero for a leaf that the pre-trained model lacks."""
    kind, _, name = path.partition("/")
    found = before.get(name if kind == "other" else path) if kind in ("params", "other") else None
    return found if found is not None and np.shape(found) == shape else np.float32(0)


class DecodedOwn(Mapping[str, np.ndarray]):
    """A version's own tree, flat, decoded leaf by leaf when it is asked for.

    Args:
        leaves: arrays and codes.
        before: gives the pre-trained model's variables without the head's parameters, a flat dict.
    """

    def __init__(self, leaves: Leaves, before: Callable[[], Mapping[str, Any]]) -> None:
        self.leaves = leaves
        self._before = before

    def __getitem__(self, path: str) -> np.ndarray:
        leaf = self.leaves[path]
        if not isinstance(leaf, Codes):
            return leaf
        rows = leaf.rows(slice(None))
        # More rows than one are those of the last axis.
        change = rows if len(rows) == 1 else np.ascontiguousarray(rows.T)
        return np.asarray(_reference(path, leaf.shape, self._before()) + change.reshape(leaf.shape))

    def __iter__(self) -> Iterator[str]:
        return iter(self.leaves)

    def __len__(self) -> int:
        return len(self.leaves)


class DecodedRows:
    """The rows of one leaf, decoded when they are taken.

    Args:
        codes: (rows, fan-in).
        channels: int (rows,), the channels of the rows.
        before: (fan-in, all channels), the pre-trained model's leaf.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, codes: Codes, channels: np.ndarray, before: np.ndarray) -> None:
        self.codes = codes
        self.channels = channels
        self.shape = codes.shape
        self._before = before

    def __len__(self) -> int:
        return len(self.channels)

    def __getitem__(self, which: Any) -> np.ndarray:
        return self._before[:, self.channels[which]].T + self.codes.rows(which)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


def decoded_rows(
    layout: Layout, own: Callable[[], Leaves], rows: Leaves, pretrained: Callable[[], Mapping[str, Any]]
) -> dict[str, Any]:
    """Returns the rows of a version as arrays, or as objects that decode the rows that are taken.

    Args:
        layout: the backbone's.
        own: returns {path: array}, with the masks that say which channels the rows are.
        rows: {path of a leaf: (rows, fan-in)}, arrays and codes.
        pretrained: returns the pre-trained model's leaves, a flat dict.
    """
    found: dict[str, Any] = dict(rows)
    for layer in layout.layers if rows else ():
        for leaf in layer.leaves:
            if isinstance(codes := rows[leaf], Codes):
                before = to_columns(np.asarray(pretrained()[leaf]), layer.gate_shape)
                found[leaf] = DecodedRows(codes, opened(layer, own()), before)
    return found
