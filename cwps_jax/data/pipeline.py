"""Batches keyed by seed and step: the same in every run, for any number of threads and of hosts.

Reading ahead is Grain's: threads suffice, since Pillow frees the interpreter while it decodes and resizes.
"""

import collections
import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from cwps_jax.data.split import Batch, Split
from cwps_jax.errors import CwpsError
from cwps_jax.parallel import Share

T = TypeVar("T")


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Returns how many full batches an epoch has. Raises CwpsError where there is not even one."""
    if len(split) < batch_size:
        raise CwpsError(
            f"config.batch_size = {batch_size}: the training data has only {len(split)} images; take a "
            "smaller one"
        )
    return len(split) // batch_size


def training_batches(
    split: Split, batch_size: int, seed: int, start: int, stop: int, share: Share = Share()
) -> Iterator[Batch]:
    """Yields the full batches of steps `start` to `stop`, shuffled anew in every epoch.

    Args:
        split: the training data.
        batch_size: items a batch, over all processes.
        seed: of the order and the augmentation. With the epoch it decides the permutation, with the step and
            the position in the whole batch how an image is augmented.
        start: first step, counted from the task's beginning.
        stop: the step after the last.
        share: the part of each batch to read.
    """
    return _read_ahead(_TrainingBatches(split, batch_size, seed, start, stop, share), split)


def evaluation_batches(split: Split, batch_size: int) -> Iterator[tuple[Batch, int]]:
    """Yields every item once, in order, with how many of the batch are real: the last one is padded."""
    return _read_ahead(_EvaluationBatches(split, batch_size), split)


def ahead(items: Iterable[T], count: int) -> Iterator[T]:
    """Yields the items, taking `count` more from the iterator than it has given: those are on their way."""
    waiting: collections.deque[T] = collections.deque()
    source = iter(items)
    waiting.extend(itertools.islice(source, count))
    for item in source:
        waiting.append(item)
        yield waiting.popleft()
    yield from waiting


class _TrainingBatches:
    """Random access to the batches, so that any thread can read any of them."""

    def __init__(self, split: Split, batch_size: int, seed: int, start: int, stop: int, share: Share) -> None:
        self.steps = steps_per_epoch(split, batch_size)
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.start, self.stop = start, stop
        if batch_size % share.count:
            raise CwpsError(
                f"config.batch_size = {batch_size}: must be a multiple of the {share.count} processes"
            )
        size = batch_size // share.count
        self.positions = range(share.index * size, (share.index + 1) * size)

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> Batch:
        step = self.start + index
        order = _permutation(self.seed, step // self.steps, len(self.split))
        first = step % self.steps * self.batch_size
        rows = order[first + self.positions.start : first + self.positions.stop]

        def draw(count: int) -> np.ndarray:
            # By rows, so that one number more changes none of the others; 1, since permutations have 0 there.
            rng = np.random.default_rng((self.seed, step, 1))
            return rng.random((count, self.batch_size))[:, self.positions].T

        return self.split.read(rows, draw)


class _EvaluationBatches:
    def __init__(self, split: Split, batch_size: int) -> None:
        self.split, self.batch_size = split, batch_size

    def __len__(self) -> int:
        return -(-len(self.split) // self.batch_size)

    def __getitem__(self, index: int) -> tuple[Batch, int]:
        first = index * self.batch_size
        rows = np.arange(first, min(first + self.batch_size, len(self.split)))
        batch = self.split.read(rows, None)
        missing = self.batch_size - len(rows)
        padded = {
            name: np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array
            for name, array in batch.items()
        }
        return padded, len(rows)


@functools.lru_cache(maxsize=4)  # threads may be in two epochs at once, and validation in a third
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def _read_ahead(batches: Any, split: Split) -> Iterator[Any]:
    if not split.threads or not len(batches):
        return (batches[index] for index in range(len(batches)))
    import grain

    grain.config.update("py_traceback_filtering", "off")  # it would write into the errors' own lines
    options = grain.ReadOptions(
        num_threads=split.threads, prefetch_buffer_size=max(split.prefetch, split.threads)
    )
    return iter(grain.MapDataset.source(batches).to_iter_dataset(options))
