"""The settings with which a stored task was learned, from the record that `cwps_jax.provenance` writes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from cwps_jax.data.preparation import Preparation
from cwps_jax.data.transforms import Transform
from cwps_jax.errors import CwpsError
from cwps_jax.provenance import KEY
from cwps_jax.store.pool import PRETRAINED, Pool


@dataclasses.dataclass(frozen=True)
class LearnedWith:
    """The settings with which a version was learned, and with which it gives the same answers again.

    Attributes:
        name: the version's name, such as "birds@1".
        task: the task's name, such as "birds".
        class_names: the names of the outputs, in their order; their numbers if the data had no names; () if
            the task is not a classification.
        shape: the shape of one image as the model sees it, (height, width, channels).
        preparation: the preparation of a batch on the device.
        transform: the preparation of an image on the host; None if images go into the model without it.
        record: the version's whole record.
    """

    name: str
    task: str
    class_names: tuple[str, ...]
    shape: tuple[int, ...]
    preparation: Preparation
    transform: Transform | None
    record: Mapping[str, Any]

    @property
    def dtype(self) -> np.dtype:
        """The dtype of one image before the preparation on the device."""
        return np.dtype(self.told["input"]["dtype"] if self.transform is None else np.uint8)

    @property
    def told(self) -> Mapping[str, Any]:
        """Everything that was recorded, see `cwps_jax.provenance.learned_with`."""
        return self.record[KEY]


def learned_with(pool: Pool, task: str, *, classified: bool = True) -> LearnedWith:
    """Returns the settings with which a task was learned.

    Args:
        pool: the stored models.
        task: a task's name, or "task@n".
        classified: whether the task has to be a classification.

    Raises:
        CwpsError: the task is not in the pool, is not a classification, or was stored by a release that did
            not record these settings.
    """
    if task == PRETRAINED:
        raise CwpsError(
            f"{pool.folder}: {task!r} is the model that tasks start from, it has no task's head; name one of "
            f"{', '.join(pool.tasks) or 'none yet'}"
        )
    version = pool.version(task)
    known, classes = version.record.get(KEY), version.record.get("classes")
    if known is None:
        raise CwpsError(
            f"{pool.folder}: {version.name} was stored without what it was learned with (image preparation, "
            "names of its classes), as earlier releases did; learn it again, or use pool.effective in Python"
        )
    if classes is None and classified:
        raise CwpsError(
            f"{pool.folder}: {version.name} is not a classification task; use cwps.predict in Python"
        )
    try:
        prepared = known["preparation"]
        mean, deviation = (
            prepared[key] and tuple(prepared[key]) for key in ("pixel_mean", "pixel_deviation")
        )
        transform = None
        if "image_size" in prepared:
            transform = Transform(
                prepared["image_size"],
                prepared["resize"],
                prepared["interpolation"],
                prepared["crop"],
                image_bits=prepared["image_bits"],
            )
        return LearnedWith(
            version.name,
            version.task,
            tuple(known["class_names"] or map(str, range(classes or 0))),
            tuple(known["input"]["shape"]),
            Preparation(mean, deviation),
            transform,
            version.record,
        )
    except (KeyError, TypeError) as error:
        raise CwpsError(
            f"{pool.folder}: what {version.name} was learned with is not understood here ({error}); use the "
            "cwps_jax that wrote it"
        ) from error
