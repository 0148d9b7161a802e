"""From a `DataConfig` to a task's `TaskData`: sources, the pass over them, validation, few-shot draw."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cwps_jax.data import decode
from cwps_jax.data.arrays_check import check_labels
from cwps_jax.data.cache import PixelCache
from cwps_jax.data.classes import by_name
from cwps_jax.data.preparation import Preparation
from cwps_jax.data.scan import Scan, scan
from cwps_jax.data.source import ImageSource, Opener
from cwps_jax.data.split import ArraySplit, ImageSplit, Split
from cwps_jax.data.task import VALIDATION_SHARE, TaskData, held_out_items
from cwps_jax.data.transforms import Transform
from cwps_jax.data.value_range import check_values
from cwps_jax.errors import CwpsError
from cwps_jax.settings import DataConfig

OWN_VALIDATION = ("validation", "val")  # what data sets call it


def load_task(
    opener: Opener, settings: DataConfig, task: str, *, seed: int = 0, cache: PixelCache | None = None
) -> TaskData:
    """Returns a task's data; images are decoded when they are needed.

    Args:
        opener: opens this kind of data.
        settings: the settings of the data, with an `image_size`.
        task: the task's name.
        seed: of the draw where `settings.shots` is set.
        cache: the cache of decoded images.

    Raises:
        CwpsError: a split does not exist, is empty or cannot be read; a label is not a class; the splits have
            different classes; an image cannot be decoded; or a class has fewer than `shots` images.
    """
    if settings.flip or settings.crop == "random_resized":
        decode.opencv()  # where it is missing, before the images are looked through
    train_name, validation_name, test_name = split_roles(settings, opener.split_names(settings, task))
    read = functools.partial(_read, opener, settings, task, cache)
    train = read(train_name)
    test = read(test_name, train.classes)
    counted = {train_name: train, test_name: test}
    labels = train.split.fields["label"]
    if validation_name:
        validation = counted[validation_name] = read(validation_name, train.classes)
        rows = np.arange(len(labels))
    else:
        held_out = held_out_items(train.digests, labels, VALIDATION_SHARE)
        validation = train._replace(split=train.split.take(np.flatnonzero(held_out)))
        rows = np.flatnonzero(~held_out)
    others = [one.values for one in counted.values() if one is not train]
    check_values(train.values, others, settings.image_bits, task)
    if settings.shots:
        drawn = draw_shots(train.digests[rows], labels[rows], settings.shots, seed)
        _check_shots(labels[rows], labels[rows[drawn]], settings.shots, task, train.classes)
        rows = rows[drawn]
    note = f"{len(train.classes)} classes; {train.note}" + ", ".join(map(_count, counted, counted.values()))
    if settings.shots:
        note += f"; {len(rows)} to train on, {settings.shots} a class drawn by seed {seed}"
    splits = train.split.take(rows), validation.split, test.split
    return TaskData(*splits, len(train.classes), note, train.classes, settings)


def load_sources(
    sources: Mapping[str, ImageSource], settings: DataConfig, *, name: str = "task", seed: int = 0
) -> TaskData:
    """Returns a task of your own sources, such as `ArraySource`; see `load_task`.

    Args:
        sources: {name of a split: its source}; "train" and "test", unless the settings name others.
        settings: the preparation of the images; the settings of a source are not used.
        name: name of the task, for messages.
        seed: of the draw where `settings.shots` is set.
    """

    def open_split(settings: DataConfig, task: str, split: str) -> ImageSource:
        if split not in sources:
            raise CwpsError(f"{task} has no split {split!r}, only {', '.join(sources)}")
        return sources[split]

    return load_task(Opener(open_split, lambda settings, task: tuple(sources)), settings, name, seed=seed)


def split_roles(settings: DataConfig, names: Sequence[str]) -> tuple[str, str, str]:
    """Returns the names of the training, validation and test split; "" for a validation split to be made.

    Args:
        settings: the settings of the data.
        names: names of the data set's splits.
    """
    used = {*settings.train_split.split("+"), *settings.test_split.split("+")}
    own = next((name for name in OWN_VALIDATION if name in names and name not in used), "")
    return settings.train_split, settings.validation_split or own, settings.test_split


def draw_shots(digests: np.ndarray, labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Returns the drawn items in their order: `shots` of each class, or all if there are fewer.

    Args:
        digests: (n, 32) uint8, the hash of each item, by which they are drawn; names and order of files do
            not matter.
        labels: (n,) classes.
        shots: items per class.
        seed: of the draw.
    """
    by_content = np.lexsort(digests.T[::-1])
    drawn = []
    for label in np.unique(labels):
        members = by_content[labels[by_content] == label]
        drawn.append(np.random.default_rng((seed, int(label))).permutation(members)[:shots])
    return np.sort(np.concatenate(drawn))


def threads_of(settings: DataConfig) -> int:
    """Returns the number of threads that read and decode."""
    return settings.reader_threads or os.cpu_count() or 1


class _Found(NamedTuple):
    """A split: its decodable images, the number of others, hashes, classes, note, and pixel values."""

    split: Split
    unreadable: int
    digests: np.ndarray
    classes: Sequence[str]
    note: str
    values: np.ndarray


def _count(name: str, found: _Found) -> str:
    skipped = f" ({found.unreadable} unreadable ones skipped)" if found.unreadable else ""
    return f"{name} {len(found.split):,} images{skipped}"


def _read(
    opener: Opener,
    settings: DataConfig,
    task: str,
    cache: PixelCache | None,
    name: str,
    training: Sequence[str] | None = None,
) -> _Found:
    """Returns a split; if it is not the training split, with labels as numbers of the training classes."""
    source = opener.open_split(settings, task, name)
    if not len(source):
        raise CwpsError(f"{source.name}: split {name!r} of task {task!r} is empty")
    found = scan(source, cache_dir=settings.cache_dir, threads=threads_of(settings))
    check_labels({"label": found.labels}, len(source.classes), f"{source.name}:")
    if found.unreadable and settings.unreadable == "refuse":
        first, why = next(iter(found.unreadable.items()))
        others = len(found.unreadable) - 1
        raise CwpsError(
            f"{source.describe(first)}: not a readable image ({why})"
            + (f", nor are {others} others" if others else "")
            + "; repair or remove what is broken, or set config.unreadable='skip'"
        )
    items = np.setdiff1d(np.arange(len(source)), list(found.unreadable))
    if not len(items):
        raise CwpsError(f"{source.name}: none of its {len(source)} images can be decoded")
    if training is not None:
        labels = by_name(found.labels, source.classes, training, f"{task}: {name}")
        found = dataclasses.replace(found, labels=labels)
    split = _split(source, found, items, settings, cache)
    note = f"{text}; " if (text := getattr(source, "note", "")) else ""
    return _Found(split, len(found.unreadable), found.digests[items], source.classes, note, found.values)


def _split(
    source: ImageSource, found: Scan, items: np.ndarray, settings: DataConfig, cache: PixelCache | None
) -> Split:
    fields = {"label": found.labels[items].astype(np.int32)}
    first = source[int(items[0])].image
    if isinstance(first, np.ndarray) and first.dtype == np.float32:  # as the model takes it
        _check_untouched(settings, source)
        images = np.stack([source[int(item)].image for item in items])
        return ArraySplit(
            {"image": images, **fields}, Preparation(None, None, settings.mixup, settings.cutmix)
        )
    return ImageSplit(
        source,
        items,
        np.hstack([found.digests, found.boxes.view(np.uint8)])[items],
        fields,
        Transform.of(settings),
        Preparation.of(settings),
        cache,
        threads_of(settings),
        settings.prefetch,
    )


def _check_untouched(settings: DataConfig, source: ImageSource) -> None:
    asked = {
        "crop": settings.crop != "center",
        "flip": settings.flip,
        "color_jitter": any(settings.color_jitter),
        "randaugment_layers": settings.randaugment_layers > 0,
    }
    for key, wanted in asked.items():
        if wanted:
            raise CwpsError(
                f"config.{key} = {getattr(settings, key)!r}: the images of {source.name} go into the model "
                "as they are; leave it at its default"
            )


def _check_shots(
    labels: np.ndarray, drawn: np.ndarray, shots: int, task: str, classes: Sequence[str]
) -> None:
    counts = np.bincount(drawn, minlength=len(classes))
    for label in np.unique(labels):
        if counts[label] < shots:
            raise CwpsError(
                f"config.shots = {shots}: class {classes[label]!r} of task {task!r} has only {counts[label]} "
                "training images besides those for validation; take fewer"
            )
