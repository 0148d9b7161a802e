"""What can be set for one task and for its data, with its default and its check."""

from cwps_jax.settings.checks import check_task_name, nearest, unknown_key
from cwps_jax.settings.data import DataConfig
from cwps_jax.settings.train import TrainConfig

__all__ = ["DataConfig", "TrainConfig", "check_task_name", "nearest", "unknown_key"]
