"""Models that are in memory, as the search reads a pool's."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cwps_jax.core.channels import Layout
from cwps_jax.search.models import StoredModels, model_rows
from cwps_jax.search.sketch import sketched


def whole_models(layout: Layout, models: Sequence[Mapping[str, Any]]) -> StoredModels:
    """Returns models of which each stores all of its rows.

    Args:
        layout: the backbone's layout.
        models: flat dicts of leaves that have the layers', the pre-trained model's first.
    """
    indices = {layer.path: np.indices((len(models), layer.channels)) for layer in layout.layers}
    channels = {layer.path: np.arange(layer.channels) for layer in layout.layers}
    start = model_rows(layout, models[0])
    return StoredModels(
        owner={path: model for path, (model, _) in indices.items()},
        row={path: channel for path, (_, channel) in indices.items()},
        read=lambda number: model_rows(layout, models[number]),
        sketch=lambda number: sketched(layout, model_rows(layout, models[number]), channels, start),
        pretrained=lambda: models[0],
    )
