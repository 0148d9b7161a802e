"""The settings of one task and of its data, with defaults and checks."""

from cwps_jax.settings.checks import check_task_name, nearest, unknown_key
from cwps_jax.settings.data import DataConfig
from cwps_jax.settings.train import TrainConfig

__all__ = ["DataConfig", "TrainConfig", "check_task_name", "nearest", "unknown_key"]
