"""Batches keyed by step: the same (seed, step) is the same batch in every run, wherever it starts."""

from collections.abc import Iterator, Mapping

import numpy as np

from cwps_jax.data.task import Arrays
from cwps_jax.errors import CwpsError

Batch = dict[str, np.ndarray]


def steps_per_epoch(split: Arrays, batch_size: int) -> int:
    """Returns how many full batches an epoch has. Raises CwpsError where there is not even one."""
    count = len(split["image"])
    if count < batch_size:
        raise CwpsError(
            f"config.batch_size = {batch_size}: the training data has only {count} images; take a smaller one"
        )
    return count // batch_size


def training_batches(split: Arrays, batch_size: int, seed: int, start: int, stop: int) -> Iterator[Batch]:
    """Yields the full batches of steps `start` to `stop`, shuffled anew in every epoch.

    Args:
        split: dict of arrays.
        batch_size: items a batch.
        seed: of the order; with the epoch it decides the permutation.
        start: first step, counted from the task's beginning.
        stop: the step after the last.
    """
    steps = steps_per_epoch(split, batch_size)
    order, epoch = np.empty(0, np.int64), -1
    for step in range(start, stop):
        if step // steps != epoch:
            epoch = step // steps
            order = np.random.default_rng((seed, epoch)).permutation(len(split["image"]))
        position = step % steps * batch_size
        index = order[position : position + batch_size]
        yield {name: array[index] for name, array in split.items()}


def evaluation_batches(split: Arrays, batch_size: int) -> Iterator[tuple[Batch, int]]:
    """Yields every item once, in order, with how many of the batch are real: the last one is padded."""
    count = len(split["image"])
    for position in range(0, count, batch_size):
        index = np.minimum(np.arange(position, position + batch_size), count - 1)
        yield {name: array[index] for name, array in split.items()}, min(batch_size, count - position)


def with_classes(split: Arrays, classes: int) -> Mapping[str, np.ndarray]:
    """Returns the split with each item's number of classes beside it, for a head padded beyond them."""
    return {**split, "classes": np.full(len(split["image"]), classes, np.int32)}
