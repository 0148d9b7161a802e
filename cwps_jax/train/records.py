"""What training tells: each epoch's `Progress`, and the network that is `Trained` at the end."""

import dataclasses
from collections.abc import Mapping

from cwps_jax.core.trees import Tree
from cwps_jax.search.composite import Source


@dataclasses.dataclass(frozen=True)
class Progress:
    """One epoch, as it is reported.

    Attributes:
        method, stage: which.
        epoch, epochs: number of the epoch, from 1, and how many the task has.
        last_of_stage: whether the stage ends with it.
        loss, metric: means over the epoch's batches, on training data.
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
        params: the plain backbone's parameters, mixed.
        other: its other collections, such as batch_stats.
        gates: nested dict of hard gates.
        sources: {path of a kernel: `Source`}; empty where every parent channel is the pre-trained one.
        pooled: names of the models that the sources count.
        epochs, seconds: what it took.
        lambda_: where the budget left lambda.
        peak_memory_bytes: of its largest step, or of the device where it says.
        flops_per_step: of its most expensive step.
    """

    params: Tree
    other: Tree
    gates: Tree
    sources: Mapping[str, Source]
    pooled: tuple[str, ...]
    epochs: int
    seconds: float
    lambda_: float
    peak_memory_bytes: int | None
    flops_per_step: float | None
