"""What can be set, with its default and its check: for one task, for its data, and for a run of main."""

from cwps_jax.config.data import DataConfig
from cwps_jax.config.run import Compared, RunConfig, check_task_name, default_config, run_config, unknown_key
from cwps_jax.config.train import TrainConfig

__all__ = [
    "Compared",
    "DataConfig",
    "RunConfig",
    "TrainConfig",
    "check_task_name",
    "default_config",
    "run_config",
    "unknown_key",
]
