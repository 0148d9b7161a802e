"""What a stored task was learned with, read from its record."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from cwps_jax import models
from cwps_jax.data.preparation import Preparation
from cwps_jax.errors import CwpsError
from cwps_jax.settings import DataConfig
from cwps_jax.store.pool import PRETRAINED, Pool


@dataclasses.dataclass(frozen=True)
class LearnedWith:
    """What a version of a task needs beside its weights, so that it answers as it did when it was learned.

    Attributes:
        name: "birds@1".
        task: "birds".
        images: where its images came from and what was done to them; None for arrays given from Python.
        class_names: a name for each output, in their order; their numbers where the data had no names.
        preparation: what is done to a batch on the device.
        shape: of one image as the model sees it, (height, width, channels).
        config: how it was learned.
    """

    name: str
    task: str
    images: DataConfig | None
    class_names: tuple[str, ...]
    preparation: Preparation
    shape: tuple[int, ...]
    config: Mapping[str, Any]

    @property
    def transforms(self) -> bool:
        """Whether images are cut, resized and normalised, rather than taken as the model sees them."""
        return self.images is not None and self.preparation.mean is not None


def learned_with(pool: Pool, task: str) -> LearnedWith:
    """Returns what a task was learned with.

    Args:
        pool: the stored models.
        task: a task's name, or "task@n".

    Raises:
        CwpsError: it is not in the pool, is no classification, or was stored by a release that did not
            record what it was learned with.
    """
    if task == PRETRAINED:
        raise CwpsError(
            f"{pool.folder}: {task!r} is the model that tasks start from, it has no task's head; name one of "
            f"{', '.join(pool.tasks) or 'none yet'}"
        )
    version = pool.version(task)
    known, classes = version.record.get("learned_with"), version.record.get("classes")
    if known is None:
        raise CwpsError(
            f"{pool.folder}: {version.name} was stored without what it was learned with (image preparation, "
            "names of its classes), as earlier releases did; learn it again, or use pool.effective in Python"
        )
    if classes is None:
        raise CwpsError(f"{pool.folder}: {version.name} is no classification; use pool.effective in Python")
    try:
        images = known["images"] and DataConfig(**{key: _frozen(one) for key, one in known["images"].items()})
        prepared = known["preparation"]
        preparation = Preparation(_frozen(prepared["mean"]), _frozen(prepared["deviation"]))
        return LearnedWith(
            version.name,
            version.task,
            images,
            tuple(known["class_names"] or map(str, range(classes))),
            preparation,
            tuple(known["input"]["shape"]),
            known["config"],
        )
    except (KeyError, TypeError) as error:
        raise CwpsError(
            f"{pool.folder}: what {version.name} was learned with is not understood here ({error}); use the "
            "cwps_jax that wrote it"
        ) from error


def task_model(pool: Pool, known: LearnedWith, model: nn.Module | None = None) -> nn.Module:
    """Returns the model that a task's variables belong to.

    Args:
        pool: the stored models.
        known: what the task was learned with.
        model: the plain model with the task's head, where the pool's backbone is one of your own.

    Raises:
        CwpsError: no model is given, and the pool's backbone has no name.
    """
    if model is None and not pool.index.backbone:
        raise CwpsError(
            f"{pool.folder}: its backbone is a model of your own; give it in Python, "
            f"cwps.predict(pool, {known.task!r}, images, model=...)"
        )
    plain = model or models.create(
        pool.index.backbone,
        len(known.class_names),
        dtype=jnp.dtype(known.config.get("dtype", "float32")),  # a run's alone; learn_task is given a model
    )
    return pool.model(known.name, plain)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
