"""A child's channels as the search compares them, and the comparison itself, weight by weight."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from cwps_jax.core.channels import Layer, Layout
from cwps_jax.search import shares
from cwps_jax.search.models import Rows, StoredModels, joined, layer_rows, looked_up
from cwps_jax.search.sketch import direction
from cwps_jax.search.slots import in_threads

# {path of a kernel: each channel's model, and its channel there}
Found = dict[str, tuple[np.ndarray, np.ndarray]]

EXACT_BYTES = 1 << 20  # rows that are compared weight by weight at a time


@dataclasses.dataclass(frozen=True)
class Child:
    """A child's channels, counted through all layers, as changes since pre-training.

    With the distance "cosine" a change is that of the direction: rows are first scaled to length 1.

    Attributes:
        layers: the backbone's layers.
        distance: as in `Search`.
        z: as in `Search`.
        own: of each layer, float32 (channels, size), the changes.
        start: of each layer, float32 (channels, size), the rows from which they changed.
        length: float64 (all channels,), their squared norms.
        fan: int (all channels,), number of weights of a channel.
        layer: int (all channels,), the number of its layer.
        channel: int (all channels,), its number there.
    """

    layers: tuple[Layer, ...]
    distance: str
    z: float
    own: list[np.ndarray]
    start: list[np.ndarray]
    length: np.ndarray
    fan: np.ndarray
    layer: np.ndarray
    channel: np.ndarray

    @classmethod
    def of(
        cls, layout: Layout, flat: Mapping[str, Any], models: StoredModels, distance: str, z: float
    ) -> "Child":
        """Returns a child's parameters, a flat dict, beside the models' pre-trained one."""
        before = models.read(0)

        def compare(layer: Layer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            start, own = (formed(layer, each, distance) for each in (before, layer_rows(layer, flat)))
            own -= start  # it is a copy
            return own, start, np.einsum("cs,cs->c", own, own)

        own, start, length = zip(*in_threads(compare, layout.layers), strict=True)
        count = [layer.channels for layer in layout.layers]
        return cls(
            layout.layers,
            distance,
            z,
            list(own),
            list(start),
            np.concatenate(length).astype(np.float64),
            np.repeat([layer.channel_parameters for layer in layout.layers], count),
            np.repeat(np.arange(len(count)), count),
            np.concatenate([np.arange(channels) for channels in count]),
        )

    def weighed(
        self, models: StoredModels, channel: np.ndarray, owner: np.ndarray, row: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compares channels with stored rows weight by weight, as they are stored.

        If there are several processes, each compares the rows of its owners; all make the same call.

        Args:
            models: the pool's models.
            channel: int (pairs,), counted through all layers, ascending in its layer.
            owner: int (pairs,), the owner of the row.
            row: int (pairs,), its number there.

        Returns:
            Two arrays, float64 (pairs,): squared distances, or inner products with the distance "change"; and
            the squared norms of the rows' changes. Equal rows give the same to the bit.
        """
        found = np.zeros((2, len(channel)))
        read = functools.cache(models.read)
        mine = np.flatnonzero(shares.mine(owner))
        number = self.layer[channel[mine]]

        def weigh(layer: int) -> None:
            pairs = mine[number == layer]
            pairs = pairs[np.argsort(owner[pairs], kind="stable")]
            one = self.layers[layer]
            step = max(1, EXACT_BYTES // (4 * one.channel_parameters))
            for first in range(0, len(pairs), step):
                some = pairs[first : first + step]
                ours, start = (each[layer][self.channel[channel[some]]] for each in (self.own, self.start))
                stored = {leaf: looked_up(leaf, owner[some], row[some], read) for leaf in one.leaves}
                theirs = formed(one, stored, self.distance) - start
                found[1, some] = np.einsum("rs,rs->r", theirs, theirs)
                if self.distance != "change":
                    ours = theirs = ours - theirs
                # In float64 without a cast inside the sum: equal rows cost the same to the bit.
                found[0, some] = np.multiply(ours, theirs, dtype=np.float64).sum(axis=1)

        in_threads(weigh, np.unique(number))
        product, squared = shares.completed(found, owner)
        return product, squared

    def disagreement(
        self, product: np.ndarray, squared: np.ndarray, length: Any, parameters: Any
    ) -> np.ndarray:
        """Returns the cost of "change": minus an agreement above z, or 0 for a row that never moved, or 1."""
        norm = np.sqrt(length * squared)
        agreement = product * (np.sqrt(parameters) / np.where(norm > 0, norm, np.inf))
        return np.where(agreement > self.z, -agreement, squared > 0)


def formed(layer: Layer, stored: Rows, distance: str) -> np.ndarray:
    """Returns stored rows of a layer as a distance compares them, float32 (rows, size)."""
    rows = joined(layer, stored)
    return direction(rows) if distance == "cosine" else rows
