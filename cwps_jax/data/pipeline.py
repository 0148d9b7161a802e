"""Batches keyed by seed and step: the same in every run, for any number of threads and of processes.

Grain shuffles, batches, divides among processes and reads ahead. Threads are enough, because Pillow releases
Python's lock while it decodes and resizes.
"""

import collections
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from cwps_jax.data.split import Batch, Split
from cwps_jax.errors import CwpsError
from cwps_jax.parallel import Share

T = TypeVar("T")


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Returns the number of full batches of an epoch. Raises CwpsError if there is none."""
    if len(split) < batch_size:
        raise CwpsError(
            f"config.batch_size = {batch_size}: the training data has only {len(split)} images; take a "
            "smaller one"
        )
    return len(split) // batch_size


def training_batches(
    split: Split, batch_size: int, seed: int, start: int, stop: int, share: Share = Share()
) -> Iterator[Batch]:
    """Yields the full batches of steps `start` to `stop`, shuffled again in every epoch.

    Args:
        split: the training data.
        batch_size: items a batch, over all processes.
        seed: of the order and the augmentation. It decides the order of every epoch and, with an item's
            position in the order, counted from the first epoch, how its image is augmented.
        start: first step, counted from the task's beginning.
        stop: the step after the last.
        share: the part of each batch to read.
    """
    import grain

    steps = steps_per_epoch(split, batch_size)
    if batch_size % share.count:
        raise CwpsError(
            f"config.batch_size = {batch_size}: must be a multiple of the {share.count} processes"
        )

    def shuffled(position: int, _: int) -> int:
        epoch, place = divmod(position, len(split))
        return int(_permutation(seed, epoch, len(split))[place])

    def drawn(row: int, rng: np.random.Generator) -> tuple[int, np.ndarray]:
        return row, rng.random(split.draws)

    def read(items: Sequence[tuple[int, np.ndarray]]) -> Batch:
        rows, draws = zip(*items, strict=True)
        return split.read(np.array(rows), np.array(draws))

    order = grain.MapDataset.range(len(split)).map_with_index(shuffled).random_map(drawn, seed=seed)
    # Parts of the size of a process's share; its own is the same one of each batch.
    parts = order[: steps * batch_size].batch(batch_size // share.count, batch_fn=list)
    batches = parts[share.index :: share.count].map(read).repeat()
    return _read_ahead(batches[start:stop], split)


def rows_of_step(split: Split, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Returns which items `training_batches` gives in a step, over all processes."""
    epoch, place = divmod(step, steps_per_epoch(split, batch_size))
    return _permutation(seed, epoch, len(split))[place * batch_size : (place + 1) * batch_size]


def evaluation_batches(split: Split, batch_size: int, share: Share = Share()) -> Iterator[tuple[Batch, int]]:
    """Yields batches with every item once, in order, and the number of real items: the last one is padded.

    Args:
        split: the items.
        batch_size: items a batch, over all processes.
        share: the part of each batch to read; real items are counted over all parts.
    """
    import grain

    part = batch_size // share.count

    def read(rows: np.ndarray) -> tuple[Batch, int]:
        places = np.arange(share.index * part, (share.index + 1) * part)
        wanted, filled = np.unique(np.minimum(places, len(rows) - 1), return_inverse=True)
        batch = split.read(rows[wanted], None)
        if len(wanted) < part:
            batch = {name: array[filled] for name, array in batch.items()}
        return batch, len(rows)

    return _read_ahead(grain.MapDataset.range(len(split)).batch(batch_size).map(read), split)


def ahead(items: Iterable[T], count: int) -> Iterator[T]:
    """Yields the items, with `count` more taken from the iterator in advance, so that they are on their
    way."""
    waiting: collections.deque[T] = collections.deque()
    source = iter(items)
    waiting.extend(itertools.islice(source, count))
    for item in source:
        waiting.append(item)
        yield waiting.popleft()
    yield from waiting


# Grain's own shuffle walks through numbers of 16 bits until one is below the count: measured, 0.05 ms an item
# of 1,000 and 1 ms an item of 50, while no other thread runs.
@functools.lru_cache(maxsize=4)  # threads may be in two epochs at once, and validation in a third
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def _read_ahead(batches: Any, split: Split) -> Iterator[Any]:
    import grain

    grain.config.update("py_traceback_filtering", "off")  # it would write into the errors' own lines
    options = grain.ReadOptions(
        num_threads=split.threads, prefetch_buffer_size=max(split.prefetch, split.threads)
    )
    return iter(batches.to_iter_dataset(options))
