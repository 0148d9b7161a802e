"""Norm statistics folded into scales and biases: the same function from half as many numbers.

In inference a batch norm computes ``scale * (x - mean) / sqrt(variance + epsilon) + bias``. With another mean
and variance, such as the pre-trained model's, it computes the same from another scale and bias. So a task
need not store statistics of its own.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

MOST_ERROR = 0.05  # see `largest_error`; 8-bit scales and biases of real tasks have 0.01 to 0.02
NAMES = ("params/{}/scale", "params/{}/bias", "other/batch_stats/{}/mean", "other/batch_stats/{}/var")


def folded(
    own: Mapping[str, np.ndarray], before: Mapping[str, Any], epsilons: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """Returns a task's leaves without the statistics of norms, whose scales and biases stand for them.

    Args:
        own: {path: array}, the task's own tree; norms that it does not have whole stay as they are.
        before: the pre-trained model's variables, a flat dict, whose statistics are used instead.
        epsilons: {path of a batch norm: its epsilon}.
    """
    left = dict(own)
    for path in _whole(own, epsilons):
        scale, bias, mean, variance = (name.format(path) for name in NAMES)
        start_mean, start_deviation = _start(before, path, epsilons[path])
        by = np.float64(own[scale]) / np.sqrt(np.float64(own[variance]) + epsilons[path])
        left[scale] = (by * start_deviation).astype(own[scale].dtype)
        left[bias] = (own[bias] - (own[mean] - start_mean) * by).astype(own[bias].dtype)
        del left[mean], left[variance]
    return left


def largest_error(
    own: Mapping[str, np.ndarray],
    stored: Mapping[str, np.ndarray],
    before: Mapping[str, Any],
    epsilons: Mapping[str, float],
) -> float:
    """Returns the largest error of a norm's outputs, for inputs with the task's own mean and variance.

    It is the largest sum of a channel's errors in mean and standard deviation, over the root mean square of
    the standard deviations of all channels of the norm.

    Args:
        own, before, epsilons: see `folded`.
        stored: what `folded` returned, rounded.
    """
    errors = []
    for path in _whole(own, epsilons):
        scale, bias, mean, variance = (np.float64(own[name.format(path)]) for name in NAMES)
        start_mean, start_deviation = _start(before, path, epsilons[path])
        by = np.float64(stored[NAMES[0].format(path)]) / start_deviation
        shift = stored[NAMES[1].format(path)] + (mean - start_mean) * by
        deviation = np.sqrt(variance)
        wanted = scale * deviation / np.sqrt(variance + epsilons[path])
        error = np.max(np.abs(by * deviation - wanted) + np.abs(shift - bias), initial=0.0)
        size = np.sqrt(np.mean(wanted * wanted)) if wanted.size else 0.0
        errors.append(error / size if size else np.inf if error else 0.0)
    return float(np.max(errors, initial=0.0))


def _whole(own: Mapping[str, Any], epsilons: Mapping[str, float]) -> list[str]:
    return [path for path in epsilons if all(name.format(path) in own for name in NAMES)]


def _start(before: Mapping[str, Any], path: str, epsilon: float) -> tuple[Any, Any]:
    mean, variance = (np.float64(before[f"batch_stats/{path}/{name}"]) for name in ("mean", "var"))
    return mean, np.sqrt(variance + epsilon)
