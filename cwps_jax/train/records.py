"""What training tells: each epoch's `Progress`, and the network that is `Trained` at the end."""

import dataclasses

from cwps_jax.core.trees import Tree
from cwps_jax.methods.method import Finished, Method


@dataclasses.dataclass(frozen=True)
class Progress:
    """One epoch, as it is reported.

    Attributes:
        method, stage: which.
        epoch, epochs: number of the epoch, from 1, and how many the task has.
        last_of_stage: whether the stage ends with it.
        loss, metric: means over the epoch's batches, on training data; a metric of a `whole_split` is nan.
        private: share of the backbone that the task would keep now (params_ratio).
        lambda_: weight of the sparsity penalty.
        seconds_per_epoch: the median of this stage so far.
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


@dataclasses.dataclass(frozen=True)
class Trained:
    """A task's network after its last stage, on the host.

    Attributes:
        finished: its trees, as the method stores them.
        method: by which it was trained.
        epochs, seconds: what it took.
        numbers: how many numbers training moved, in the stage that moves most.
        lambda_: where the budget left lambda.
        peak_memory_bytes: of its largest step, or of the device where it says.
        flops_per_step: of its most expensive step.
    """

    finished: Finished
    method: Method
    epochs: int
    seconds: float
    numbers: int
    lambda_: float
    peak_memory_bytes: int | None
    flops_per_step: float | None

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
