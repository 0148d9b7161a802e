"""Addresses: where on the device the rows of a task's network lie, as one vector of integers for a program.

An address has these parts for each layer, one layer after the other: `channels`, the channels that are not
the pre-trained model's own; `start`, the pre-trained model's channel that each of them is a change of;
`column`, for every channel of the layer its place among those channels, or -1; and for every leaf `kind` and
`slot`. At the end are the slot of the task's other own values, and a zero.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from cwps_jax.bank import kinds
from cwps_jax.core.channels import Layer, Layout

Capacity = tuple[int, ...]  # for each layer, the number of channels to which a task's own ones are padded


@dataclasses.dataclass(frozen=True)
class Part:
    """The part of an address that belongs to one layer; its arrays are NumPy arrays or traced.

    Attributes:
        layer: the layer.
        channels: int32 (capacity,); padding is the layer's number of channels.
        start: int32 (capacity,).
        column: int32 (channels,).
        kind, slot: {path of a leaf: int32 (capacity,)}.
    """

    layer: Layer
    channels: Any
    start: Any
    column: Any
    kind: Mapping[str, Any]
    slot: Mapping[str, Any]


def parts_of(layout: Layout, capacity: Capacity, address: Any) -> Iterator[Part]:
    """Yields an address layer by layer."""
    at = 0

    def next_of(count: int) -> Any:
        nonlocal at
        at += count
        return address[at - count : at]

    for layer, room in zip(layout.layers, capacity, strict=True):
        channels, start, column = next_of(room), next_of(room), next_of(layer.channels)
        pairs = {leaf: (next_of(room), next_of(room)) for leaf in layer.leaves}
        kind, slot = ({leaf: pair[one] for leaf, pair in pairs.items()} for one in (0, 1))
        yield Part(layer, channels, start, column, kind, slot)


def own_slot(address: jax.Array) -> Any:
    """Returns the slot of the values that a task has of its own beside its rows."""
    return address[-2]


def zero_of(address: jax.Array) -> Any:
    """Returns a zero whose value a compiler does not know."""
    return address[-1]


def written(layout: Layout, capacity: Capacity, parts: Mapping[str, Part], own: int) -> np.ndarray:
    """Returns an address.

    Args:
        layout: the backbone's layout.
        capacity: the capacity to which the parts are padded; no part has more channels.
        parts: {path of a kernel: its part, without `column`}.
        own: the slot that `own_slot` returns.
    """
    found: list[np.ndarray] = []
    for layer, room in zip(layout.layers, capacity, strict=True):
        part = parts[layer.path]
        column = np.full(layer.channels, -1, np.int32)
        column[part.channels] = np.arange(len(part.channels))
        found += [_padded(part.channels, room, layer.channels), _padded(part.start, room, 0), column]
        for leaf in layer.leaves:
            found += [_padded(part.kind[leaf], room, 0), _padded(part.slot[leaf], room, 0)]
    return np.concatenate([*found, np.array([own, 0])]).astype(np.int32)


def widened(layout: Layout, capacity: Capacity, address: np.ndarray, room: Capacity) -> np.ndarray:
    """Returns an address that is padded to the larger capacity `room`."""
    if room == capacity:
        return address
    parts = {part.layer.path: _cut(part) for part in parts_of(layout, capacity, address)}
    return written(layout, room, parts, int(address[-2]))


def moved(
    layout: Layout, capacity: Capacity, address: np.ndarray, slots: Mapping[tuple[str, str], np.ndarray]
) -> np.ndarray:
    """Returns an address whose rows have moved.

    Args:
        layout, capacity, address: see `parts_of`.
        slots: {(path of a leaf, a kind): int32, the new slot of each row of that table}; other rows stay.
    """
    found = address.copy()
    for part in parts_of(layout, capacity, found):
        for leaf in part.layer.leaves:
            for number in set(part.kind[leaf].tolist()):
                if (now := slots.get((leaf, kinds.KINDS[number]))) is not None:
                    mine = part.kind[leaf] == number
                    part.slot[leaf][mine] = now[part.slot[leaf][mine]]
    return found


def _cut(part: Part) -> Part:
    """Returns a part without its padding."""
    count = int(np.sum(part.channels < part.layer.channels))
    kind, slot = ({leaf: of[leaf][:count] for leaf in part.layer.leaves} for of in (part.kind, part.slot))
    return Part(part.layer, part.channels[:count], part.start[:count], part.column, kind, slot)


def _padded(values: np.ndarray, room: int, padding: int) -> np.ndarray:
    return np.append(values, np.full(room - len(values), padding))
