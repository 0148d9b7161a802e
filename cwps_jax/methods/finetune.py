"""Fine-tuning: every channel is the task's own."""

from cwps_jax.config import TrainConfig
from cwps_jax.methods.method import Method, Stage, all_open, whole_child


def finetune(config: TrainConfig) -> Method:
    """Returns one stage over all epochs; its step is the one that cwps warms up with."""
    return Method("finetune", (Stage("finetune", config.epochs, whole_child, all_open),))
