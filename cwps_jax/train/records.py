"""The reports of training: each epoch's `Progress`, and the network that is `Trained` at the end."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cwps_jax.core.trees import Tree
from cwps_jax.methods.method import Finished, Method

METRICS = ("loss", "metric", "private", "lambda")  # of each step
NO_STEPS = np.zeros((0, len(METRICS)), np.float32)


@dataclasses.dataclass(frozen=True)
class SoFar:
    """The cost of a task's training so far, in all of its processes.

    Attributes:
        seconds: seconds of its steps and of the work between stages.
        numbers: number of trained numbers, in the stage that trains most.
        lambda_: the last lambda.
        peak_memory_bytes: peak of its largest step, or the device's own figure.
        flops_per_step: FLOPs of its most expensive step.
    """

    seconds: float = 0.0
    numbers: int = 0
    lambda_: float = 0.0
    peak_memory_bytes: int | None = None
    flops_per_step: float | None = None

    def with_steps(
        self, seconds: float, numbers: int, lambda_: float, peak: int | None, flops: float | None
    ) -> "SoFar":
        """Returns it after further steps of one stage."""
        return SoFar(
            self.seconds + seconds,
            max(self.numbers, numbers),
            lambda_,
            max(filter(None, (self.peak_memory_bytes, peak)), default=None),
            max(filter(None, (self.flops_per_step, flops)), default=None),
        )


class Stopwatch:
    """Runs from when it is made."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since then."""
        return time.perf_counter() - self._began


def measured(rows: np.ndarray) -> dict[str, float]:
    """Returns what an epoch is told by: the means of loss and metric, and the last of the others.

    Args:
        rows: float32 (steps, 4), of its steps.
    """
    loss, metric, private, lambda_ = rows.T.astype(np.float64)
    return {
        "loss": float(loss.mean()),
        "metric": float(metric.mean()),
        "private": float(private[-1]),
        "lambda_": float(lambda_[-1]),
    }


@dataclasses.dataclass(frozen=True)
class Progress:
    """One epoch, as it is reported.

    Attributes:
        method, stage: names of the method and the stage.
        epoch, epochs: number of the epoch, from 1, and number of epochs of the task.
        last_of_stage: whether the stage ends with it.
        loss, metric: means over the epoch's batches, on training data; nan for a metric of a `whole_split`.
        private: share of the backbone's parameters that the task would keep now (params_ratio).
        lambda_: weight of the sparsity penalty.
        seconds_per_epoch: median over this stage's epochs so far.
    """

    method: str
    stage: str
    epoch: int
    epochs: int
    last_of_stage: bool
    loss: float
    metric: float
    private: float
    lambda_: float
    seconds_per_epoch: float


Observe = Callable[[Progress], None]


def unobserved(progress: Progress) -> None:
    """Reports an epoch to nobody."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """A task's network after its last stage, on the host.

    Attributes:
        finished: its trees, as the method stores them.
        method: the method by which it was trained.
        epochs: number of epochs of all stages.
        so_far: the cost of the training, and its last lambda.
        curve: the results of each of `config.budgets`, plain JSON; empty if there are not several.
    """

    finished: Finished
    method: Method
    epochs: int
    so_far: SoFar
    curve: tuple[Mapping[str, Any], ...] = ()

    @property
    def params(self) -> Tree:
        """The plain backbone's parameters."""
        return self.finished.params

    @property
    def other(self) -> Tree:
        """The model's other collections, such as batch_stats."""
        return self.finished.other

    @property
    def gates(self) -> Tree:
        """Nested dict of hard gates; empty where the method has none."""
        return self.finished.gates
