"""The answers of stored tasks: `predict` for new images, `evaluate` for images whose classes are known."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError

from cwps_jax import data as sources
from cwps_jax import models, provenance
from cwps_jax.data.split import Arrays, Split, as_split
from cwps_jax.data.task import TaskData, check_labels
from cwps_jax.errors import CwpsError
from cwps_jax.methods.method import Method
from cwps_jax.serve.images import Path, class_folders, given_arrays, given_images
from cwps_jax.serve.learned_with import LearnedWith, learned_with
from cwps_jax.settings import DataConfig, TrainConfig
from cwps_jax.store.pool import Pool
from cwps_jax.train.evaluation import Predictor, measure
from cwps_jax.train.named_metrics import find_metric
from cwps_jax.train.objectives import Metric, accuracy


@dataclasses.dataclass(frozen=True)
class Predictions:
    """A task's answers for images, in the order of the images.

    Attributes:
        class_names: the names of the outputs; () if the task is not a classification.
        logits: the model's outputs, (images, classes); another shape, or a tree of arrays such as one for
            each of several heads, if the task is not a classification.
    """

    class_names: tuple[str, ...]
    logits: Any

    @functools.cached_property
    def probabilities(self) -> np.ndarray:
        """The softmax of the logits, float64 (images, classes). CwpsError if it is not a classification."""
        self._check_classified()
        shifted = np.exp(self.logits.astype(np.float64) - self.logits.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)

    @property
    def classes(self) -> list[str]:
        """The name of each image's most probable class. CwpsError if it is not a classification."""
        self._check_classified()
        return [self.class_names[number] for number in self.logits.argmax(axis=1)]

    def top(self, count: int) -> list[list[tuple[str, float]]]:
        """Returns, for each image, its most probable classes and their probabilities, the highest first.

        Args:
            count: the number of classes; all of them if there are fewer.

        Raises:
            CwpsError: the task is not a classification.
        """
        self._check_classified()
        best = np.argsort(-self.logits, axis=1, kind="stable")[:, :count]
        return [
            [(self.class_names[number], float(row[number])) for number in order]
            for order, row in zip(best, self.probabilities, strict=True)
        ]

    def _check_classified(self) -> None:
        if not self.class_names:
            raise CwpsError(
                "this is not a classification task: read what its model gives, predictions.logits"
            )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A task's metric on images whose classes are known.

    Attributes:
        metric: the mean of the metric, accuracy by default.
        class_names: the names of the outputs; () if the task is not a classification.
        confusion: int64 (classes, classes), the number of images of the row's class for which the column's
            class was answered.
    """

    metric: float
    class_names: tuple[str, ...]
    confusion: np.ndarray

    @property
    def per_class(self) -> dict[str, float | None]:
        """{class: share of its images that were answered correctly}; None for a class without images."""
        counts = self.confusion.sum(axis=1)
        return {
            name: float(self.confusion[number, number] / counts[number]) if counts[number] else None
            for number, name in enumerate(self.class_names)
        }


def predict(
    pool: Pool,
    task: str,
    images: Path | Sequence[Path] | np.ndarray | Arrays | Split,
    *,
    model: nn.Module | None = None,
    batch_size: int = 0,
) -> Predictions:
    """Returns a stored task's answers for images, which are prepared exactly as in its evaluation.

    Args:
        pool: the stored models.
        task: a task's name, or "task@n".
        images: paths of image files or folders, or patterns; an array (n, height, width, channels), uint8
            if the task was learned from images, otherwise as its model takes it; a dict of arrays with
            "image" and the model's other inputs; or a `Split`. Pictures are taken whole; if the task's own
            pictures were cut to boxes, the log says so once.
        model: the plain model with the task's head, if the pool's backbone is a model of your own.
        batch_size: images per batch; 0 for that of its training, or less if there are fewer images.

    Raises:
        CwpsError: there is no such task, it was stored by a release that did not record its preparation, or
            an image is missing or cannot be decoded.

    Examples:
        >>> predict(pool, "birds", "photos/").top(3)  # doctest: +SKIP
    """
    known = learned_with(pool, task, classified=False)
    if isinstance(images, str | os.PathLike | Sequence | np.ndarray):
        images = given_images(known, images)
    elif isinstance(images, Mapping):
        images = given_arrays(known, images)
    logits = _logits(pool, known, images, model, batch_size)
    return Predictions(_classes_of(logits, known), logits)


def evaluate(
    pool: Pool,
    task: str,
    data: Path | TaskData | Split | Arrays | None = None,
    *,
    metric: Metric | str = "accuracy",
    model: nn.Module | None = None,
    batch_size: int = 0,
) -> Evaluation:
    """Returns the metric of a stored task on images whose classes are known.

    Args:
        pool: the stored models.
        task: a task's name, or "task@n".
        data: a folder of class folders, <class>/<file>, with the names of the task's classes; a `TaskData`,
            of which the test split is used; a split; a dict of arrays with "image" and "label"; or None for
            the test data that the task was learned with.
        metric: a function from (outputs, batch) to one value per item, (batch,); a metric of a
            `whole_split`; or a name as `learn_task` takes it; accuracy by default, for a classification.
        model: see `predict`.
        batch_size: see `predict`.

    Raises:
        CwpsError: see `predict`; a folder or a label is not a class of the task; `data` is None and the task
            was learned from arrays; or the metric is accuracy and the task is not a classification.
    """
    metric = find_metric(metric)
    known = learned_with(pool, task, classified=False)
    split = _labelled(known, data)
    if known.class_names:
        check_labels(split.fields, len(known.class_names), f"{known.name}:")
    logits = _logits(pool, known, split, model, batch_size)
    names = _classes_of(logits, known)
    if metric is accuracy and not names:
        raise CwpsError(f"{pool.folder}: {known.name} is not a classification task; give its metric, metric=")
    confusion = np.zeros((len(names), len(names)), np.int64)
    if names:
        np.add.at(confusion, (split.fields["label"], logits.argmax(axis=1)), 1)
    return Evaluation(measure(metric, logits, split), names, confusion)


def _classes_of(logits: Any, known: LearnedWith) -> tuple[str, ...]:
    """Returns the names of a model's outputs; () if they are not classes, as those of several heads."""
    shape: tuple[int, ...] = getattr(logits, "shape", ())
    return known.class_names if len(shape) == 2 and shape[1] >= len(known.class_names) else ()


def _labelled(known: LearnedWith, data: Path | TaskData | Split | Arrays | None) -> Split:
    if data is None:
        return _recorded(known)
    if isinstance(data, str | os.PathLike):
        return class_folders(known, pathlib.Path(data))
    if isinstance(data, TaskData):
        return data.test
    if isinstance(data, Mapping):
        return given_arrays(known, data)
    return as_split(data)


def _recorded(known: LearnedWith) -> Split:
    """Returns the test data that a task was learned with; an error is raised if they have changed."""
    images = known.told["images"]
    if images is None:
        raise CwpsError(f"{known.name} was learned from arrays given in Python; give its data here, too")
    settings = DataConfig(**images)
    data = sources.load(settings, known.told["task"], seed=known.told["config"]["seed"])
    now = provenance.learned_with(known.task, data, TrainConfig(), known.told["dtype"])
    provenance.check_task(known.task, known.record, data, now)
    return data.test


def _logits(pool: Pool, known: LearnedWith, split: Split, model: nn.Module | None, batch_size: int) -> Any:
    # Batches have powers of two of images: one image must not cost as much as 64, and few sizes are compiled.
    fitting = 1 << (len(split) - 1).bit_length()
    predictor = predictor_of(pool, known, model)
    batch_size = batch_size or min(known.told["config"]["batch_size"], fitting)
    try:
        return predictor(pool.effective(known.name), split, batch_size)
    except FlaxError as error:
        raise CwpsError(
            f"{known.name}: its parameters do not fit the model or what it is given ({error}); give the "
            "model by which it was learned, and inputs of the same shapes"
        ) from error


def predictor_of(pool: Pool, known: LearnedWith, model: nn.Module | None) -> Predictor:
    """Returns the predictor that applies a task's whole network.

    Args:
        pool: the stored models.
        known: the settings with which the task was learned.
        model: the plain model with the task's head, if the pool's backbone is a model of your own.

    Raises:
        CwpsError: the backbone is a model of your own, and it is not given.
    """
    if model:
        return Predictor(pool.model(known.name, model))
    if not pool.index.backbone:
        raise CwpsError(
            f"{pool.folder}: its backbone is a model of your own; give it in Python, "
            f"cwps.predict(pool, {known.task!r}, images, model=...), or cwps.export likewise"
        )
    classes = len(known.class_names)
    return _predictor(pool.index.backbone, classes, known.told["dtype"], pool.method(known.name))


@functools.lru_cache(maxsize=8)  # The next call must not trace the same program again.
def _predictor(backbone: str, classes: int, dtype: str, method: Method) -> Predictor:
    return Predictor(method.wrap(models.create(backbone, classes, dtype=jnp.dtype(dtype))))
