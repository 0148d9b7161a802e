"""The loops over batches of training data: an epoch of steps, and the norm statistics of single batches."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from cwps_jax.core.trees import Tree
from cwps_jax.data.pipeline import ahead, steps_per_epoch, training_batches
from cwps_jax.data.split import Batch, Split
from cwps_jax.parallel import Parallel
from cwps_jax.settings import TrainConfig
from cwps_jax.train.finite import why
from cwps_jax.train.records import METRICS, NO_STEPS
from cwps_jax.train.state import Plan, TrainState

# Steps that the host runs ahead of the device: it never waits inside an epoch, and batches do not pile up.
IN_FLIGHT = 3
LOOK = 100  # steps from one look at the losses to the next: that is how soon one that is not finite is seen

Rows = Callable[[], np.ndarray]


def run_epoch(
    step: Callable[..., Any],
    state: TrainState,
    frozen: Tree,
    plan: Plan,
    split: Split,
    config: TrainConfig,
    parallel: Parallel,
    epoch: int,
    rows: np.ndarray = NO_STEPS,
    between: Callable[[TrainState, Rows], None] = lambda state, rows: None,
) -> tuple[TrainState, np.ndarray, float]:
    """Returns the state after one epoch, the measurements of its steps, and the seconds of an epoch.

    Args:
        step: compiled by `parallel`; the state is donated to it.
        state, frozen, plan: its other arguments, on the devices.
        split: the training data.
        config: the task's config.
        parallel: how batches are spread over devices.
        epoch: its number, counted from the task's beginning.
        rows: float32 (steps, 4), the measurements of its steps that were taken before.
        between: called after each step with the state, and with a function that waits for the rows so far and
            returns them.

    Returns:
        The state; float32 (steps, 4), see `records.METRICS`; the seconds of a whole epoch.

    Raises:
        FloatingPointError: a loss is not finite; the message names a cause in the batch if there is one.
    """
    began = time.perf_counter()
    steps, taken = steps_per_epoch(split, config.batch_size), len(rows)
    found, waiting = list(rows), list[Any]()

    def look(last: int | None = None) -> np.ndarray:
        """Returns the rows so far, or those without the last ones, which are the only ones to wait for."""
        nonlocal waiting
        seen, waiting = waiting[:last], waiting[len(waiting[:last]) :]
        for row in parallel.fetch(seen):
            if not np.isfinite(row["loss"]):
                where = f"the loss is {row['loss']} in epoch {epoch + 1}, step {len(found) + 1}"
                raise FloatingPointError(f"{where}{why(split, config, epoch * steps + len(found))}")
            found.append(np.array([row[name] for name in METRICS], np.float32))
        return np.array(found, np.float32).reshape(-1, len(METRICS))

    batches = _batches(split, config, parallel, epoch * steps + taken, steps - taken)
    for batch in ahead(map(parallel.split, batches), split.prefetch):
        state, metrics = step(state, frozen, plan, batch)
        waiting.append(metrics)
        if len(waiting) > IN_FLIGHT:
            jax.block_until_ready(waiting[-IN_FLIGHT])
        if len(waiting) == LOOK + IN_FLIGHT:
            look(-IN_FLIGHT)
        between(state, look)
    rows = look()
    share = (steps - taken) / steps
    return state, rows, (time.perf_counter() - began) / share if share else 0.0


def mean_statistics(
    statistics: Callable[..., Tree],
    state: TrainState,
    frozen: Tree,
    split: Split,
    config: TrainConfig,
    parallel: Parallel,
    start: int,
) -> Tree:
    """Returns the norm statistics after single batches, averaged over `config.norm_batches`, on the host.

    Args:
        statistics: compiled by `parallel`, see `step.make_norm_step`.
        state, frozen: its arguments besides a batch and its number, on the devices.
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


def _batches(
    split: Split, config: TrainConfig, parallel: Parallel, start: int, count: int
) -> Iterator[Batch]:
    return training_batches(split, config.batch_size, config.seed, start, start + count, parallel.share)
