"""The places where a run writes the numbers of its epochs, by their names in config.metrics."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cwps_jax.extras import EXTRAS, check_extra
from cwps_jax.report.metric_writer import JsonLines, MetricWriter, TensorBoard
from cwps_jax.report.mlflow_writer import MlFlow
from cwps_jax.report.wandb_writer import WeightsAndBiases

# Called with the workdir and the run's config.
WRITERS: dict[str, Callable[[pathlib.Path, Mapping[str, Any]], MetricWriter]] = {
    "tensorboard": lambda workdir, told: TensorBoard(workdir),
    "jsonl": lambda workdir, told: JsonLines(workdir),
    "wandb": WeightsAndBiases,
    "mlflow": MlFlow,
}


def check_packages(names: Sequence[str]) -> None:
    """Raises CwpsError for the first of the names whose package is not installed."""
    for name in names:
        if name in EXTRAS:
            check_extra(name, f"{name!r} in config.metrics")


def open_writers(names: Sequence[str], workdir: pathlib.Path, told: Mapping[str, Any]) -> list[MetricWriter]:
    """Opens a writer for each name of config.metrics; each continues after the epochs of an earlier run.

    Args:
        names: keys of `WRITERS`.
        workdir: folder of the run, which exists.
        told: the run's config as plain values, for trackers that show it.

    Raises:
        CwpsError: a package is not installed, or a tracker cannot start.
    """
    check_packages(names)
    return [WRITERS[name](workdir, told) for name in names]
