"""Batch norm as PyTorch's networks have it."""

import functools
from typing import Any

import flax.linen as nn


def batch_norm(train: bool, momentum: float, dtype: Any) -> Any:
    """Returns what makes a batch norm from its name.

    Args:
        train: whether it takes and updates the batch's own statistics.
        momentum: share of the old running statistics at each update.
        dtype: compute dtype.
    """
    return functools.partial(
        nn.BatchNorm, use_running_average=not train, momentum=momentum, epsilon=1e-5, dtype=dtype
    )
