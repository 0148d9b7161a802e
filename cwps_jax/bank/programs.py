"""What runs on the device: a task's variables out of the tables, or the rows of many tasks' pictures.

All of a network is written in one pass, into the buffers of one before: what is the task's own out of the
tables, the rest out of the pre-trained model. A swap and a tree that is kept are that very pass. On a
CPU that pass costs less than to write single channels, which lie apart in a kernel; most of a swap there is,
by what is known so far, to gather the rows and to turn them.
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
    """Returns {path: leaf} of all variables but the layers': a task's own, and what it has not of its own."""
    vectors = {dtype: jnp.take(array, own_slot(address), axis=0) for dtype, array in own.items()}
    found = {path: leaf for path, leaf in start.items() if not path.startswith("params/")}
    if any(not leaf.path.startswith("params/") for leaf in leaves):  # not even a leaf of another task's head
        found = flatten(without_head(layout, unflatten(found)))
    coded = 0
    for leaf in leaves:
        size = int(np.prod(leaf.shape))
        values = vectors[leaf.dtype][leaf.first : leaf.first + size]
        if leaf.bits:
            middle = np.float32(0.5 - 2 ** (leaf.bits - 1))
            step = vectors["steps"][coded]
            values = kinds.change(values, step, leaf.bits, middle, size, zero_of(address))
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
    """Returns what is not the pre-trained model's own in one task's network."""
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
    """Returns a task's variables, equal to the bit to `Pool.effective` but for the width of its head.

    Args:
        layout: the backbone's.
        capacity: of the address.
        leaves: what is its own beside rows.
        working: such variables, whose memory is given up and used.
        start: {path: leaf}, the pre-trained model's variables without its head, and what replaces them.
        tables: {path of a leaf: {kind: its parts}}.
        own: {dtype: (tasks, values)}.
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
    """Returns zeros in the form of what `written` returns, for a first one to be written into."""
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
    """Returns what a mixed batch needs of its tasks.

    It is no part of the network's program, which is not compiled anew when a table grows.

    Args:
        layout, capacity, leaves, start, tables, own: see `written`.
        addresses: int32 (pictures, ...).
    """
    of_one = functools.partial(_private, layout, capacity, leaves, start, tables, own)
    return jax.vmap(of_one)(addresses)
