"""Metrics that have a name, which `learn_task(metric=...)` and `config.metric` take and a record keeps.

All but accuracy are of a whole split, by scikit-learn.
"""

import functools
from collections.abc import Mapping

import numpy as np

from cwps_jax.errors import CwpsError
from cwps_jax.extras import check_extra
from cwps_jax.train.objectives import Metric, WholeSplit, accuracy, whole_split


def _decided(outputs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels and answers as scikit-learn takes them: (items,), or (items, answers)."""
    if labels.shape == outputs.shape:  # yes or no for each output
        width = labels.shape[-1]
        return (labels > 0.5).reshape(-1, width), (outputs > 0).reshape(-1, width)
    return labels.ravel(), outputs.argmax(axis=-1).ravel()


@whole_split
def macro_f1(outputs: np.ndarray, fields: Mapping[str, np.ndarray]) -> float:
    """Returns the mean of the classes' F1.

    Args:
        outputs: (items, ..., classes), scores of classes, or of yes against no where labels have that shape.
        fields: "label", integers (items, ...), or 0 and 1 for each output.
    """
    from sklearn.metrics import f1_score

    return f1_score(*_decided(outputs, fields["label"]), average="macro", zero_division=0)


@whole_split
def mean_iou(outputs: np.ndarray, fields: Mapping[str, np.ndarray]) -> float:
    """Returns the mean of the classes' intersection over union (the Jaccard index), over all pixels.

    Args:
        outputs: see `macro_f1`.
        fields: see `macro_f1`.
    """
    from sklearn.metrics import jaccard_score

    return jaccard_score(*_decided(outputs, fields["label"]), average="macro", zero_division=0)


@whole_split
def mean_average_precision(outputs: np.ndarray, fields: Mapping[str, np.ndarray]) -> float:
    """Returns the mean of the classes' average precision, over the classes that any item has.

    Args:
        outputs: (items, classes), scores.
        fields: "label", integers (items,), or 0 and 1 for each output.
    """
    from sklearn.metrics import average_precision_score

    labels = fields["label"]
    given = labels > 0.5 if labels.shape == outputs.shape else labels[:, None] == np.arange(outputs.shape[1])
    there = given.any(axis=0)
    return average_precision_score(given[:, there], outputs[:, there], average="macro")


NAMED: dict[str, Metric] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "mean_iou": mean_iou,
    "mean_average_precision": mean_average_precision,
}


def find_metric(given: Metric | str) -> Metric:
    """Returns the metric of a name; a metric that is given as a function stays as it is.

    Raises:
        CwpsError: there is no metric of this name, or scikit-learn is not installed.
    """
    if not isinstance(given, str):
        return given
    if given not in NAMED:
        raise CwpsError(f"metric {given!r} is not one of {', '.join(NAMED)}; or give a function in Python")
    if isinstance(NAMED[given], WholeSplit):
        check_extra("demo", f"metric {given!r}")
    return NAMED[given]


def metric_name(metric: Metric) -> str:
    """Returns the name by which a record tells a metric: its key in `NAMED`, or its function's own."""
    for name, one in NAMED.items():
        if one is metric:
            return name
    function = metric.function if isinstance(metric, WholeSplit) else metric
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)
