"""CPMS, the composite parent model search: which stored channel each parent channel is taken from.

Layer by layer every output channel of the warmed child is compared with the same layer's channels of
every model in the pool, and the nearest becomes the parent's channel (METHOD, stage 2).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from cwps_jax.core.channels import Layer, Layout, layer_rows, split_rows
from cwps_jax.core.trees import Tree, flatten, unflatten
from cwps_jax.errors import CwpsError

Distance = Literal["l2", "cosine", "change"]
Granularity = Literal["channel", "layer"]
Candidates = Literal["aligned", "any"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Source:
    """Where a layer's parent channels come from.

    Attributes:
        model: int32 (channels,), index of the model in the pool; 0 is the pre-trained one.
        channel: int32 (channels,), the channel's index in that model's layer.
    """

    model: jax.Array
    channel: jax.Array


@dataclasses.dataclass(frozen=True)
class Search:
    """How to search.

    Attributes:
        distance: "l2", squared Euclidean distance of the weights; "cosine", one minus the cosine of the
            weights; "change", direction of the change since pre-training: the model whose change has the
            highest cosine with the child's, where that cosine times sqrt(fan-in) exceeds `z`, else the
            pre-trained model.
        granularity: "channel", a source a channel; "layer", one source a layer, by the sum over channels.
        candidates: "aligned", the same channel index of every model; "any", every channel of the layer.
        z: how far above chance agreement "change" has to be.
    """

    distance: Distance = "change"
    granularity: Granularity = "channel"
    candidates: Candidates = "aligned"
    z: float = 3.0

    def __post_init__(self) -> None:
        for field, allowed in (
            ("distance", ("l2", "cosine", "change")),
            ("granularity", ("channel", "layer")),
            ("candidates", ("aligned", "any")),
        ):
            if getattr(self, field) not in allowed:
                raise CwpsError(f"search {field} {getattr(self, field)!r}: choose one of {allowed}")
        if self.granularity == "layer" and self.candidates == "any":
            raise CwpsError("search by layer needs candidates='aligned': a layer is taken whole")


def composite(
    layout: Layout,
    child: Tree,
    models: Mapping[str, jax.Array],
    count: jax.Array | int,
    search: Search = Search(),
) -> tuple[dict[str, Any], dict[str, Source]]:
    """Returns the composite parent and where each of its channels came from.

    Args:
        layout: the backbone's layout; static under jit.
        child: nested dict, the warmed child's parameters.
        models: flat dict, for every leaf of every layer the pool's models stacked on a leading axis,
            oldest first, the pre-trained model at 0. Models from `count` on are padding.
        count: number of models, traced: a growing pool does not recompile until the padding grows.
        search: how to compare; static under jit.

    Returns:
        The parent, a nested dict of the layers' leaves, and {path of a kernel: its `Source`}.
        Ties go to the oldest model, then to the lowest channel.
    """
    own = flatten(child)
    parent: dict[str, jax.Array] = {}
    sources: dict[str, Source] = {}
    for layer in layout.layers:
        stacked = jax.vmap(lambda leaves, layer=layer: layer_rows(layer, leaves))(
            {leaf: models[leaf] for leaf in layer.leaves}
        )
        source = nearest(layer, layer_rows(layer, own), stacked, count, search)
        parent.update(split_rows(layer, stacked[source.model, source.channel]))
        sources[layer.path] = source
    return unflatten(parent), sources


def nearest(
    layer: Layer, child: jax.Array, models: jax.Array, count: jax.Array | int, search: Search
) -> Source:
    """Returns the source of every channel of one layer.

    Args:
        layer: the layer.
        child: (channels, size of a channel), the child's channels.
        models: (models, channels, size of a channel), the pool's.
        count: how many of the models are real.
        search: how to compare.
    """
    present = jnp.arange(models.shape[0]) < count
    aligned = jnp.arange(layer.channels, dtype=jnp.int32)
    if search.candidates == "any":
        return _nearest_of_any(child, models, present, search)
    if search.granularity == "layer" and search.distance == "change":
        # One direction for the whole layer: chance agreement is judged on all of its weights.
        whole = child.reshape(1, -1), models.reshape(len(models), 1, -1)
        cost = _distances(*whole, models[0].reshape(1, -1), search)
    else:
        cost = _distances(child, models, models[0], search)
    if search.granularity == "layer":
        cost = jnp.sum(cost, axis=1, keepdims=True)
    best = jnp.argmin(jnp.where(present[:, None], cost, jnp.inf), axis=0).astype(jnp.int32)
    return Source(jnp.broadcast_to(best, aligned.shape), aligned)


def _distances(child: jax.Array, rows: jax.Array, start: jax.Array, search: Search) -> jax.Array:
    """Returns the distance of child channels to rows, over the last axis and broadcast over the others.

    Differences are taken weight by weight: a matrix product of raw weights would lose a small move of
    the child to cancellation (measured in METHOD: a 0.1% move came out 12% off).
    """
    if search.distance == "l2":
        return jnp.sum((child - rows) ** 2, axis=-1)
    if search.distance == "cosine":
        # One minus the cosine, as half the squared distance of the directions: 1 - x cancels near 1.
        return 0.5 * jnp.sum((_direction(child) - _direction(rows)) ** 2, axis=-1)
    change = rows - start
    cosine = jnp.sum(_direction(child - start) * _direction(change), axis=-1)
    agreement = cosine * math.sqrt(child.shape[-1])
    # A row that never changed is the pre-trained one: it costs 0, and others have to beat it by z.
    unmoved = jnp.all(change == 0, axis=-1)
    return jnp.where(agreement > search.z, -agreement, jnp.where(unmoved, 0.0, 1.0))


def _direction(rows: jax.Array) -> jax.Array:
    """Returns rows of length 1 along the last axis; zero rows stay zero."""
    norm = jnp.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / jnp.where(norm > 0, norm, 1)


def _nearest_of_any(child: jax.Array, models: jax.Array, present: jax.Array, search: Search) -> Source:
    count, channels, size = models.shape
    rows = models.reshape(count * channels, size)
    real = jnp.repeat(present, channels)

    def best_for(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        row, start = pair
        cost = _distances(row, rows, start, search)
        return jnp.argmin(jnp.where(real, cost, jnp.inf)).astype(jnp.int32)

    # One child channel at a time: exact differences without a (channels, rows, size) array.
    best = jax.lax.map(best_for, (child, models[0]))
    return Source(best // channels, best % channels)
