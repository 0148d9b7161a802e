"""Sharing methods: each a few stages, each stage a rule from (child, masks, frozen) to effective."""

from cwps_jax.config import TrainConfig
from cwps_jax.errors import CwpsError
from cwps_jax.methods.cwps import cwps
from cwps_jax.methods.finetune import finetune
from cwps_jax.methods.method import Method
from cwps_jax.methods.probe import probe

METHODS = {"cwps": cwps, "finetune": finetune, "probe": probe}


def create(config: TrainConfig) -> Method:
    """Returns the config's method. Raises CwpsError for one that is not known."""
    if config.method not in METHODS:
        raise CwpsError(f"method {config.method!r} is not known; choose one of {', '.join(METHODS)}")
    return METHODS[config.method](config)
