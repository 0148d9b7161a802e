"""The epochs and the batch size of a task with little data."""

import dataclasses
import math

from cwps_jax.errors import CwpsError
from cwps_jax.settings import TrainConfig


def fit_to_data(
    config: TrainConfig, count: int, *, least_steps: int = 0, few_shot: bool = False, multiple: int = 1
) -> TrainConfig:
    """Returns the config with the batch size and epochs that fit the number of training images.

    A batch that is larger than the data becomes, in few-shot training, the largest power of two that is
    not; epochs are added until there are `least_steps`.

    Args:
        config: the task's config.
        count: training images.
        least_steps: fewest training steps.
        few_shot: whether the batch may shrink; otherwise too few images are refused.
        multiple: a number of which the batch has to be a multiple, such as the number of devices.

    Raises:
        CwpsError: there are fewer images than the smallest batch.
    """
    batch_size = config.batch_size
    if few_shot and count < batch_size:
        batch_size = multiple * 2 ** int(math.log2(count // multiple)) if count >= multiple else 0
    if not 0 < batch_size <= count:
        raise CwpsError(
            f"config.batch_size = {config.batch_size}: the training data has only {count} images"
            + (f", fewer than the {multiple} that a batch needs" if few_shot else "; take a smaller one")
        )
    epochs = max(config.epochs, -(-least_steps // (count // batch_size)))
    return dataclasses.replace(config, batch_size=batch_size, epochs=epochs)
