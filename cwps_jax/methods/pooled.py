"""The models that exist so far, as a new task's stages may see them."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from cwps_jax.core.trees import Tree
from cwps_jax.search.models import StoredModels


@dataclasses.dataclass(frozen=True)
class Pooled:
    """The models that exist so far, as a stage may see them.

    Attributes:
        models: the models from which others can take channels, oldest first and the pre-trained one at 0.
        names: their names in the pool.
        tasks: {name: a function that gives the task's plain parameters}, of every stored task.
        stored: {name: a function that returns the stored arrays, a flat dict}, of this method's versions.
    """

    models: StoredModels
    names: tuple[str, ...]
    tasks: Mapping[str, Callable[[], Tree]] = dataclasses.field(default_factory=dict)
    stored: Mapping[str, Callable[[], Mapping[str, np.ndarray]]] = dataclasses.field(default_factory=dict)
