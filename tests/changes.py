"""A config with some of its values changed, whether they are a task's or its method's."""

import dataclasses
from typing import Any

from cwps_jax import TrainConfig, methods


def changed(config: TrainConfig, **changes: Any) -> TrainConfig:
    """Returns the config with changes by name, of which its method's settings go to its method."""
    method = methods.resolve(changes.pop("method", config.method))
    settings = {key: changes.pop(key) for key in [*changes] if hasattr(method, key)}
    return dataclasses.replace(config, **changes, method=dataclasses.replace(method, **settings))
