"""CPMS, the composite parent model search, which finds a stored channel for each channel of the parent.

Layer by layer, every output channel of the child after warm-up is compared with the channels of the same
layer of every model in the pool, and the nearest becomes the parent's channel (METHOD, stage 2).
"""

import dataclasses
from typing import Any, Literal

import jax
import numpy as np

from cwps_jax.core.channels import Layout
from cwps_jax.core.trees import Tree, flatten, unflatten
from cwps_jax.errors import CwpsError
from cwps_jax.search.anywhere import of_any
from cwps_jax.search.child import Child, Found
from cwps_jax.search.models import StoredModels, gather
from cwps_jax.search.nearest import of_layers, of_same

Distance = Literal["l2", "cosine", "change"]
Granularity = Literal["channel", "layer", "model"]
Candidates = Literal["aligned", "any", "random", "pretrained"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Source:
    """The sources of a layer's parent channels.

    Attributes:
        model: int32 (channels,), index of the model in the pool; 0 is the pre-trained one.
        channel: int32 (channels,), the channel's index in that model's layer.
    """

    model: jax.Array | np.ndarray
    channel: jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class Search:
    """The settings of the search.

    Attributes:
        distance: "l2", squared Euclidean distance of the weights; "cosine", one minus the cosine of the
            weights; "change", direction of the change since pre-training. It takes the model whose change has
            the highest cosine with the child's, if that cosine times sqrt(fan-in) exceeds `z`, and otherwise
            the pre-trained model.
        granularity: "channel", one source for each channel; "layer", one for each layer, by the sum over
            channels; "model", one for all layers: the best single model.
        candidates: "aligned", the same channel index of every model; "any", every channel of the layer. Two
            more are baselines: "random", the channel of a model that is drawn; "pretrained", the pre-trained
            model's.
        z: how many standard deviations above chance the agreement of "change" has to be.
        seed: seed of the draw.
    """

    distance: Distance = "change"
    granularity: Granularity = "channel"
    candidates: Candidates = "aligned"
    z: float = 3.0
    seed: int = 0

    def __post_init__(self) -> None:
        for field, allowed in (
            ("distance", ("l2", "cosine", "change")),
            ("granularity", ("channel", "layer", "model")),
            ("candidates", ("aligned", "any", "random", "pretrained")),
        ):
            if getattr(self, field) not in allowed:
                raise CwpsError(f"search {field} {getattr(self, field)!r}: choose one of {allowed}")
        if self.granularity != "channel" and self.candidates == "any":
            raise CwpsError(f"search by {self.granularity} needs candidates='aligned': it is taken whole")


def composite(
    layout: Layout, child: Tree, models: StoredModels, search: Search = Search()
) -> tuple[dict[str, Any], dict[str, Source]]:
    """Returns the composite parent and the source of each of its channels, on the host.

    Args:
        layout: the backbone's layout.
        child: nested dict, the child's parameters after warm-up.
        models: the pool's models.
        search: the settings of the search.

    Returns:
        The parent, a nested dict of the layers' leaves, and {path of a kernel: its `Source`}.
        Ties go to the oldest model, then to the lowest channel.

    Raises:
        CwpsError: it is called under jit, or a stored file is damaged.
    """
    flat = flatten(child)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in flat.values()):
        raise CwpsError("the search reads stored rows: call it outside of jit")
    if search.candidates in ("random", "pretrained"):
        found = _not_searched(layout, models, search)
    else:
        compared = Child.of(layout, flat, models, search.distance, search.z)
        if search.candidates == "any":
            found = of_any(compared, models)
        elif search.granularity == "channel":
            found = of_same(compared, models)
        else:
            found = of_layers(compared, models, as_one=search.granularity == "model")
    sources = {path: Source(*(each.astype(np.int32) for each in pair)) for path, pair in found.items()}
    owner, row = (
        {path: each[path][model, channel] for path, (model, channel) in found.items()}
        for each in (models.owner, models.row)
    )
    return unflatten(gather(layout, owner, row, models.read, models.pretrained())), sources


def _not_searched(layout: Layout, models: StoredModels, search: Search) -> Found:
    """Returns sources that do not depend on the child."""
    rng, found = np.random.default_rng(search.seed), {}
    count = len(models.owner[layout.layers[0].path]) if search.candidates == "random" else 1
    of_all = rng.integers(count, size=1) if search.granularity == "model" else None
    for layer in layout.layers:
        size = layer.channels if search.granularity == "channel" else 1
        drawn = rng.integers(count, size=size) if of_all is None else of_all
        found[layer.path] = np.broadcast_to(drawn, layer.channels), np.arange(layer.channels)
    return found
