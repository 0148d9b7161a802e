"""What a stored task was learned with, as its record says it: `cwps_jax.provenance` writes it."""

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
    """What a version of a task needs beside its weights, so that it answers as it did when it was learned.

    Attributes:
        name: "birds@1".
        task: "birds".
        class_names: a name for each output, in their order; their numbers where the data had no names; () for
            what is no classification.
        shape: of one image as the model sees it, (height, width, channels).
        preparation: what is done to a batch on the device.
        transform: what is done to an image on the host; None where images go into the model as they are.
        record: of the version.
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
        """Type of one image as the model is given it."""
        return np.dtype(self.told["input"]["dtype"] if self.transform is None else np.uint8)

    @property
    def told(self) -> Mapping[str, Any]:
        """All that was recorded, see `cwps_jax.provenance.learned_with`."""
        return self.record[KEY]


def learned_with(pool: Pool, task: str, *, classified: bool = True) -> LearnedWith:
    """Returns what a task was learned with.

    Args:
        pool: the stored models.
        task: a task's name, or "task@n".
        classified: whether the task has to be a classification.

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
    known, classes = version.record.get(KEY), version.record.get("classes")
    if known is None:
        raise CwpsError(
            f"{pool.folder}: {version.name} was stored without what it was learned with (image preparation, "
            "names of its classes), as earlier releases did; learn it again, or use pool.effective in Python"
        )
    if classes is None and classified:
        raise CwpsError(f"{pool.folder}: {version.name} is no classification; use cwps.predict in Python")
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
