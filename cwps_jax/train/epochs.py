"""The loops over batches of training data: an epoch of steps, and the norm statistics of single batches."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from cwps_jax.core.trees import Tree
from cwps_jax.data.arrays_check import not_finite
from cwps_jax.data.pipeline import ahead, rows_of_step, steps_per_epoch, training_batches
from cwps_jax.data.split import Batch, Split
from cwps_jax.parallel import Parallel
from cwps_jax.settings import TrainConfig
from cwps_jax.train.state import Plan, TrainState

# Steps that the host runs ahead of the device: it never waits inside an epoch, and batches do not pile up.
IN_FLIGHT = 3


def run_epoch(
    step: Callable[..., Any],
    state: TrainState,
    frozen: Tree,
    plan: Plan,
    split: Split,
    config: TrainConfig,
    parallel: Parallel,
    epoch: int,
) -> tuple[TrainState, dict[str, float], float]:
    """Returns the state after one epoch, the epoch's metrics, and its seconds.

    Args:
        step: compiled by `parallel`; the state is donated to it.
        state, frozen, plan: what it takes beside a batch, on the devices.
        split: the training data.
        config: the task's config.
        parallel: how batches are spread over devices.
        epoch: its number, counted from the task's beginning.

    Raises:
        FloatingPointError: the mean of the epoch's losses is not finite; the batch is looked at first.
    """
    began = time.perf_counter()
    steps = steps_per_epoch(split, config.batch_size)
    kept: list[Any] = []
    batches = _batches(split, config, parallel, epoch * steps, steps)
    for batch in ahead(map(parallel.split, batches), split.prefetch):
        state, metrics = step(state, frozen, plan, batch)
        kept.append(metrics)
        if len(kept) > IN_FLIGHT:
            jax.block_until_ready(kept[-IN_FLIGHT])
    rows = parallel.fetch(kept)
    measured = {
        "loss": float(np.mean([row["loss"] for row in rows])),
        "metric": float(np.mean([row["metric"] for row in rows])),
        "private": float(rows[-1]["private"]),
        "lambda_": float(rows[-1]["lambda"]),
    }
    if not np.isfinite(measured["loss"]):
        first = next(place for place, row in enumerate(rows) if not np.isfinite(row["loss"]))
        where = f"the loss is {rows[first]['loss']} in epoch {epoch + 1}, step {first + 1}"
        raise FloatingPointError(f"{where}{_why(split, config, epoch * steps + first)}")
    return state, measured, time.perf_counter() - began


def mean_statistics(
    statistics: Callable[..., Tree],
    state: TrainState,
    frozen: Tree,
    split: Split,
    config: TrainConfig,
    parallel: Parallel,
    start: int,
) -> Tree:
    """Returns the norm statistics of single batches, averaged over `config.norm_batches`, on the host.

    Args:
        statistics: compiled by `parallel`, see `step.make_norm_step`.
        state, frozen: what it takes beside a batch and its number, on the devices.
        split: the training data.
        config: the task's config.
        parallel: how batches are spread over devices.
        start: number of the first batch, counted from the task's beginning.
    """
    count = min(config.norm_batches, steps_per_epoch(split, config.batch_size))
    batches = _batches(split, config, parallel, start, count)
    found = parallel.fetch(
        [
            statistics(state, frozen, parallel.replicate(np.int32(number)), parallel.split(batch))
            for number, batch in enumerate(batches, start)
        ]
    )
    return jax.tree.map(lambda *leaves: np.mean(leaves, axis=0, dtype=np.float32), *found)


def _why(split: Split, config: TrainConfig, step: int) -> str:
    """Returns what makes the loss of a step not finite: an item of its batch, or else the rate."""
    rows = rows_of_step(split, config.batch_size, config.seed, step)
    for name, values in split.read(rows, None).items():
        found = not_finite(values)
        if found:
            return f": the {name!r} of training item {rows[found[0]]} has a value that is {found[1]}; mend it"
    return "; its images and labels are finite: lower config.learning_rate"


def _batches(
    split: Split, config: TrainConfig, parallel: Parallel, start: int, count: int
) -> Iterator[Batch]:
    return training_batches(split, config.batch_size, config.seed, start, start + count, parallel.share)
