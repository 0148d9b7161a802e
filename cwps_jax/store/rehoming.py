"""Rows that move from one owner to another, while models stay the same to the bit."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cwps_jax.core.channels import Layer, Layout
from cwps_jax.core.coding import Codes
from cwps_jax.core.entropy import EntropyCodes, together
from cwps_jax.core.trees import unflatten
from cwps_jax.methods.channels import Ownership, pack_bits, smallest
from cwps_jax.methods.method import Stored
from cwps_jax.search.models import Rows
from cwps_jax.search.slots import runs
from cwps_jax.store.coded import DecodedRows, Leaves


class Channels(NamedTuple):
    """One layer of a version: the channels that it stores itself, and the owners of the others."""

    is_open: np.ndarray
    owner: np.ndarray
    row: np.ndarray


def stored_anew(
    layout: Layout,
    own: Leaves,
    rows: Rows,
    before: Ownership,
    after: Mapping[str, Channels],
    read: Callable[[int], Rows],
) -> Stored:
    """Returns the stored form of a version of the same model that has other rows of its own.

    Args:
        layout: the backbone's.
        own: {path: array or codes}, its stored arrays now except for its rows.
        rows: its rows now.
        before: the present owners of its channels.
        after: {path of a kernel: their new owners}.
        read: an owner's number to its rows.
    """
    changed: dict[str, Any] = dict(own)
    new: dict[str, np.ndarray | Codes] = {}
    for layer in layout.layers:
        is_open, owner, row = after[layer.path]
        changed[f"masks/{layer.path}"] = pack_bits(is_open)
        changed[f"owner/{layer.path}"] = smallest(owner[~is_open])
        changed[f"row/{layer.path}"] = smallest(row[~is_open])
        who, where = (one[is_open] for one in before[layer.path])
        for leaf in layer.leaves:
            new[leaf] = rows[leaf][:0]
            if len(who):
                parts = [(read(int(who[first]))[leaf], where[first:last]) for first, last in runs(who)]
                new[leaf] = _together(parts, np.flatnonzero(is_open))
    return Stored(unflatten(changed), new)


def _together(parts: Sequence[tuple[Any, np.ndarray]], channels: np.ndarray) -> np.ndarray | Codes:
    """Returns rows of several owners as one array, equal to the bit; as codes if all of them are codes.

    Args:
        parts: for each owner its rows of a leaf, and the numbers of those to take.
        channels: int (rows,), whose rows they become: codes are changes of the same channel.
    """
    aligned = all(isinstance(one, DecodedRows) for one, _ in parts) and np.array_equal(
        np.concatenate([one.channels[which] for one, which in parts]), channels
    )
    if not aligned:
        return np.concatenate([one[which] for one, which in parts])
    codes = [(one.codes, which) for one, which in parts]
    entropy_coded = [isinstance(one, EntropyCodes) for one, _ in codes]
    if all(entropy_coded) and len({one.of_taps for one, _ in codes}) == 1:
        return together(codes)
    if any(entropy_coded):
        return np.concatenate([one[which] for one, which in parts])
    bits = max(one.bits for one, _ in codes)
    taken = [one.taken(which, bits) for one, which in codes]
    return Codes(
        bits,
        (len(channels), *taken[0].shape[1:]),
        np.concatenate([one.codes for one in taken]),
        np.concatenate([one.steps for one in taken]),
    )


def without_owner(
    layout: Layout, gone: int, numbers: Mapping[int, int], ownerships: Mapping[int, Ownership]
) -> dict[int, dict[str, Channels]]:
    """Returns the owners of versions' channels without one owner: the oldest that needs a row gets it.

    Args:
        layout: the backbone's.
        gone: the owner's number.
        numbers: {number of each version that borrows from it, or from one that does: its new number}, oldest
            first.
        ownerships: the same versions' channels as they are.
    """
    found: dict[int, dict[str, Channels]] = {old: {} for old in numbers}
    for layer in layout.layers:
        for old, channels in _layer(layer, gone, numbers, ownerships).items():
            found[old][layer.path] = channels
    return found


def _layer(
    layer: Layer, gone: int, numbers: Mapping[int, int], ownerships: Mapping[int, Ownership]
) -> dict[int, Channels]:
    before = {old: ownerships[old][layer.path] for old in numbers}
    is_open = {old: owner == old for old, (owner, _) in before.items()}
    home: dict[int, tuple[int, int]] = {}  # a row that moves: who has it then, at which channel
    for old, (owner, row) in before.items():
        for channel in np.flatnonzero(owner == gone):
            is_open[old][channel] = home.setdefault(int(row[channel]), (old, int(channel)))[0] == old
    place = {old: np.cumsum(mask) - 1 for old, mask in is_open.items()}
    after = {}
    for old, (owner, row) in before.items():
        new_owner, new_row = owner.astype(np.int64), row.astype(np.int64)
        for channel in np.flatnonzero(~is_open[old]):
            holder, at = int(owner[channel]), -1
            if holder == gone:
                holder, at = home[int(row[channel])]
            elif holder in numbers:
                at = int(np.flatnonzero(before[holder][0] == holder)[row[channel]])
            if at >= 0:
                new_owner[channel], new_row[channel] = numbers[holder], place[holder][at]
        after[old] = Channels(is_open[old], new_owner, new_row)
    return after


def with_owners(before: Ownership, known: Mapping[int, int]) -> dict[str, Channels]:
    """Returns the owners of a version's channels in another pool: rows of missing owners become its own.

    Args:
        before: where they are now.
        known: {an owner's number here: its number there}; 0 is the pre-trained model in both.
    """
    after = {}
    for path, (owner, row) in before.items():
        is_open = ~np.isin(owner, [*known])
        there = np.array([known.get(int(one), 0) for one in owner], np.int64)
        after[path] = Channels(is_open, there, row.astype(np.int64))
    return after


def closure(needed: Mapping[int, set[int]], first: Sequence[int]) -> set[int]:
    """Returns the numbers of the versions that need one of some versions, directly or through others.

    Args:
        needed: {a version's number: those that it needs}.
        first: these versions, which are not returned unless they need each other.
    """
    found: set[int] = set()
    while more := {one for one, its in needed.items() if its & {*first, *found}} - found:
        found |= more
    return found
