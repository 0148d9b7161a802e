"""Models that are in memory, as the search reads a pool's."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cwps_jax.core.channels import Layout
from cwps_jax.core.stored import StoredModels, model_rows


def whole_models(layout: Layout, models: Sequence[Mapping[str, Any]]) -> StoredModels:
    """Returns models of which each stores all of its rows.

    Args:
        layout: the backbone's layout.
        models: flat dicts of leaves that have the layers', the pre-trained model's first.
    """
    indices = {layer.path: np.indices((len(models), layer.channels)) for layer in layout.layers}
    return StoredModels(
        owner={path: model for path, (model, _) in indices.items()},
        row={path: channel for path, (_, channel) in indices.items()},
        read=lambda number: model_rows(layout, models[number]),
        pretrained=lambda: models[0],
    )
