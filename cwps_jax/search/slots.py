"""The candidates of a search: every stored row once, and the sketches of many owners, arranged by channel."""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from cwps_jax.search import shares

WORKERS = min(8, os.cpu_count() or 1)  # threads: NumPy computes, and files are hashed, without Python's lock
PIECE = 1 << 17  # weights that are float32 at a time: what a core's own cache holds
BLOCK_BYTES = 1 << 26  # of 8-bit rows that a thread arranges at a time
KEEP_BYTES = 1 << 30  # of rows that stay arranged for the next search; more than that are arranged by each

Sketch = Mapping[str, np.ndarray]  # see `cwps_jax.search.sketch`


@dataclasses.dataclass(frozen=True)
class Slots:
    """The distinct candidates of a network's channels, each once for any number of models that have it.

    Attributes:
        channel: int (slots,), the channel of the candidate, counted through all layers; in ascending order.
        model: int (slots,), the oldest model that has it.
        owner: int (slots,), its owner.
        row: int (slots,), its number there.
    """

    channel: np.ndarray
    model: np.ndarray
    owner: np.ndarray
    row: np.ndarray

    @classmethod
    def of(cls, owner: np.ndarray, row: np.ndarray) -> "Slots":
        """Finds the slots of models, given int (models, all channels) as `StoredModels` has them."""
        models, rows = len(owner), int(row.max()) + 1
        key = (owner.T.astype(np.int64) * rows + row.T) * models + np.arange(models)
        key.sort(axis=1)
        stored = key // models
        new = np.diff(stored, axis=1, prepend=-1) != 0
        return cls(
            np.repeat(np.arange(len(key)), new.sum(axis=1)), key[new] % models, *np.divmod(stored[new], rows)
        )

    def mine(self) -> "Slots":
        """Returns those whose rows this process compares."""
        mine = shares.mine(self.owner)
        if mine.all():
            return self
        return Slots(self.channel[mine], self.model[mine], self.owner[mine], self.row[mine])


@dataclasses.dataclass(frozen=True)
class Sketched:
    """The slots that have a sketch.

    Attributes:
        slots: int (sketched,), their numbers, ascending.
        about: the numbers of the sketches except for the values, with layer, owner and row; (sketched,) each.
        sketches: the owners' sketches.
        size: number of weights of a channel, for each layer.
        kept: rows that are arranged already, by the number of their block.
    """

    slots: np.ndarray
    about: Mapping[str, np.ndarray]
    sketches: Sequence[Sketch]
    size: Sequence[int]
    kept: dict[int, np.ndarray] = dataclasses.field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, slots: Slots, channels: Sequence[int], sketch: Callable[[int], Sketch]) -> "Sketched | None":
        """Reads the sketches of all owners; returns None where there is none.

        Args:
            slots: the candidates.
            channels: number of channels of each layer.
            sketch: an owner's id to its sketch.
        """
        owners = np.unique(slots.owner[slots.owner > 0])
        if not len(owners):
            return None
        sketches = in_threads(lambda owner: sketch(int(owner)), owners)
        keys = ("channel", "scale", "error", "squared", "turned", "norm")
        about = {key: np.concatenate([one[key] for one in sketches]) for key in keys}
        rows = np.stack([one["rows"] for one in sketches])
        first = (np.cumsum(rows) - rows.ravel()).reshape(rows.shape)
        stored = np.flatnonzero(slots.owner > 0)
        layer = np.repeat(np.arange(len(channels)), channels)[slots.channel[stored]]
        channel = np.concatenate([np.arange(count) for count in channels])[slots.channel[stored]]
        owner, row = np.searchsorted(owners, slots.owner[stored]), slots.row[stored]
        place = first[owner, layer] + row
        # A row that another channel has borrowed was not sketched as that channel's change.
        same = about["channel"][place] == channel
        about = {key: values[place[same]] for key, values in about.items()}
        about |= {"layer": layer[same], "owner": owner[same], "row": row[same]}
        return cls(stored[same], about, sketches, sketches[0]["size"].tolist())

    def products(self, own: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the inner products of sketched changes and a child's of the same index, (sketched,).

        Args:
            own: of each layer, float32 (channels, size).
        """
        products = np.empty(len(self.slots), np.float32)
        keep = np.take(self.size, self.about["layer"]).sum() <= KEEP_BYTES
        ends = np.searchsorted(self.about["layer"], np.arange(len(self.size)), side="right").tolist()
        blocks = []
        for layer, (begin, end) in enumerate(itertools.pairwise([0, *ends])):
            step = max(1, BLOCK_BYTES // self.size[layer])
            blocks += [(layer, slice(first, min(first + step, end))) for first in range(begin, end, step)]

        def compare(number: int) -> None:
            layer, block = blocks[number]
            rows = self.kept[number] if number in self.kept else self._arranged(layer, block)
            if keep:
                self.kept[number] = rows
            found, channel = products[block], self.about["channel"][block]
            step = max(1, PIECE // self.size[layer])
            # Into the same memory again and again: new memory would cost as much as the products.
            whole = np.empty((step, self.size[layer]), np.float32)
            for begin, end in runs(channel):
                for first in range(begin, end, step):
                    last = min(first + step, end)
                    part = whole[: last - first]
                    np.copyto(part, rows[first:last])
                    np.dot(part, own[layer][channel[begin]], out=found[first:last])

        in_threads(compare, range(len(blocks)))
        return products * self.about["scale"]

    def _arranged(self, layer: int, block: slice) -> np.ndarray:
        """Returns the 8-bit rows of some slots of a layer, which stand by channel, not by owner."""
        owner, row, size = self.about["owner"][block], self.about["row"][block], self.size[layer]
        rows = np.empty((len(owner), size), np.int8)
        order = np.argsort(owner, kind="stable")
        for begin, end in runs(owner[order]):
            some = order[begin:end]
            sketch = self.sketches[owner[some[0]]]
            first = int(np.dot(sketch["rows"][:layer], self.size[:layer]))
            values = sketch["values"][first : first + sketch["rows"][layer] * size].reshape(-1, size)
            rows[some] = values if len(some) == len(values) else values[row[some]]  # ascending: all of them
        return rows


def runs(values: np.ndarray) -> Iterable[tuple[int, int]]:
    """Returns the beginning and the end of each run of equal values."""
    return itertools.pairwise([0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)])


def in_threads(function: Callable[[Any], Any], values: Iterable[Any]) -> list[Any]:
    """Returns the function's result for each value."""
    with ThreadPoolExecutor(WORKERS) as threads:
        return list(threads.map(function, values))
