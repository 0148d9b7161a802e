"""The programs on the device: they read a task's variables, or the rows for many pictures, from the tables.

A whole network is written in one pass, into the buffers of an earlier one: the task's own values come from
the tables, all others from the pre-trained model. A swap and the making of a kept tree are the same pass. On
a CPU this pass costs less than writing single channels, which are not contiguous in a kernel; by the
measurements so far, most of a swap's time goes into gathering the rows and transposing them.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cwps_jax.bank import kinds
from cwps_jax.bank.address import Capacity, Part, own_slot, parts_of, zero_of
from cwps_jax.bank.mixed import PrivateRows
from cwps_jax.bank.stored import OwnLeaf
from cwps_jax.core.channels import Layout, from_columns, to_columns
from cwps_jax.core.heads import without_head
from cwps_jax.core.trees import flatten, unflatten

OwnLeaves = tuple[OwnLeaf, ...]


def _rows(part: Part, leaf: str, columns: jax.Array, tables: Mapping[str, Any], zero: jax.Array) -> jax.Array:
    """Returns the rows of a leaf that an address names, (capacity, fan-in)."""
    start = jnp.take(columns, part.start, axis=1, mode="clip").T
    rows = start
    for kind, table in tables.get(leaf, {}).items():
        taken = {name: jnp.take(array, part.slot[leaf], axis=0, mode="clip") for name, array in table.items()}
        of_kind = (part.kind[leaf] == kinds.NUMBER[kind])[:, None]
        rows = jnp.where(of_kind, kinds.rows_of(kind, taken, start, zero), rows)
    return rows


def _own(
    layout: Layout,
    leaves: OwnLeaves,
    start: Mapping[str, jax.Array],
    own: Mapping[str, jax.Array],
    address: jax.Array,
) -> dict[str, jax.Array]:
    """Returns {path: leaf} of all variables except those of layers: a task's own, or else the shared ones."""
    vectors = {dtype: jnp.take(array, own_slot(address), axis=0) for dtype, array in own.items()}
    found = {path: leaf for path, leaf in start.items() if not path.startswith("params/")}
    if any(not leaf.path.startswith("params/") for leaf in leaves):  # the pre-trained head's must go, too
        found = flatten(without_head(layout, unflatten(found)))
    coded = 0
    for leaf in leaves:
        size = int(np.prod(leaf.shape))
        values = vectors[leaf.dtype][leaf.first : leaf.first + size]
        if leaf.bits:
            middle = np.float32(0.5 - 2 ** (leaf.bits - 1))
            step = vectors["steps"][coded]
            values = kinds.change(kinds.whole(values, leaf.bits, size) + middle, step, zero_of(address))
            coded += 1
        reference = start.get(leaf.path)
        if leaf.bits and reference is not None and reference.shape == leaf.shape:
            values = reference.reshape(-1) + values
        found[leaf.path] = values.reshape(leaf.shape)
    return found


def _private(
    layout: Layout,
    capacity: Capacity,
    leaves: OwnLeaves,
    start: Mapping[str, jax.Array],
    tables: Mapping[str, Any],
    own: Mapping[str, jax.Array],
    address: jax.Array,
) -> PrivateRows:
    """Returns the values of one task's network that are not those of the pre-trained model."""
    channels, rows = {}, {}
    for part in parts_of(layout, capacity, address):
        if not len(part.channels):
            continue
        channels[part.layer.path] = part.channels
        for leaf in part.layer.leaves:
            held = start[f"params/{leaf}"]
            columns = to_columns(held, part.layer.gate_shape)
            rows[leaf] = _rows(part, leaf, columns, tables, zero_of(address)).astype(held.dtype)
    other = unflatten(_own(layout, leaves, start, own, address))
    return PrivateRows(channels, rows, other.pop("params"), other)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3, keep_unused=True)
def written(
    layout: Layout,
    capacity: Capacity,
    leaves: OwnLeaves,
    working: Any,
    start: Mapping[str, jax.Array],
    tables: Mapping[str, Any],
    own: Mapping[str, jax.Array],
    address: jax.Array,
) -> dict[str, Any]:
    """Returns a task's variables, equal to the bit to `Pool.effective` except for the width of the head.

    Args:
        layout: the backbone's layout.
        capacity: the capacity of the address.
        leaves: the leaves that the task has of its own beside its rows.
        working: variables of the same form, whose memory is given up and used again.
        start: {path: leaf}, the pre-trained model's variables without its head.
        tables: {path of a leaf: {kind: its parts}}.
        own: {dtype: (tasks, values)}, the table of the values of `leaves`.
        address: see `bank.address`.
    """
    private = _private(layout, capacity, leaves, start, tables, own, address)
    found = flatten({"params": private.params, **private.other})
    for part in parts_of(layout, capacity, address):
        for leaf, shape in zip(part.layer.leaves, part.layer.shapes, strict=True):
            found[f"params/{leaf}"] = held = start[f"params/{leaf}"]
            if leaf in private.rows:
                columns = to_columns(held, part.layer.gate_shape)
                taken = jnp.take(private.rows[leaf].T, jnp.maximum(part.column, 0), axis=1, mode="clip")
                merged = jnp.where(part.column >= 0, taken, columns)
                found[f"params/{leaf}"] = from_columns(merged, part.layer.gate_shape, shape)
    return unflatten(found)


@functools.partial(jax.jit, static_argnums=(0, 1))
def empty(layout: Layout, leaves: OwnLeaves, start: Mapping[str, jax.Array]) -> dict[str, Any]:
    """Returns zeros in the form of the variables that `written` returns, into which it can write first."""
    nothing = {path: jnp.zeros_like(leaf) for path, leaf in start.items()}
    if any(not leaf.path.startswith("params/") for leaf in leaves):
        nothing = flatten(without_head(layout, unflatten(nothing)))
    own = {leaf.path: jnp.zeros(leaf.shape, "float32" if leaf.bits else leaf.dtype) for leaf in leaves}
    return unflatten({**nothing, **own})


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def of_pictures(
    layout: Layout,
    capacity: Capacity,
    leaves: OwnLeaves,
    start: Mapping[str, jax.Array],
    tables: Mapping[str, Any],
    own: Mapping[str, jax.Array],
    addresses: jax.Array,
) -> PrivateRows:
    """Returns the values that the tasks of a mixed batch do not share.

    This program is separate from the network's, so that a growing table does not compile the network again.

    Args:
        layout, capacity, leaves, start, tables, own: see `written`.
        addresses: int32 (pictures, ...), the address of each picture's task.
    """
    of_one = functools.partial(_private, layout, capacity, leaves, start, tables, own)
    return jax.vmap(of_one)(addresses)
