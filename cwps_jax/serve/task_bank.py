"""`TaskBank`: a bank that takes images, and prepares them in the same way as each task's evaluation."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from cwps_jax.bank import Bank, Described
from cwps_jax.data.pipeline import evaluation_batches
from cwps_jax.errors import CwpsError
from cwps_jax.serve.answers import Predictions
from cwps_jax.serve.images import Path, given_images
from cwps_jax.serve.learned_with import LearnedWith, learned_with
from cwps_jax.store.pool import Pool


class TaskBank(Bank):
    """Tasks of a pool, answered from one backbone, with each stored row once on the device: see `bank.Bank`.

    Examples:
        >>> bank = TaskBank(pool)  # doctest: +SKIP
        >>> bank("photos/", task="birds").classes  # doctest: +SKIP
        >>> bank(pictures, tasks=["birds", "cars"])[1].top(3)  # doctest: +SKIP
    """

    def described(self, pool: Pool, task: str) -> Described:
        """Returns a description of a task's inputs and outputs, from its record."""
        known = learned_with(pool, task)
        pixels = known.told["input"]["dtype"] if known.transform is None else "uint8"
        return Described(len(known.class_names), known.shape, known.told["dtype"], known.preparation, pixels)

    def __call__(
        self,
        images: Path | Sequence[Path] | np.ndarray,
        *,
        task: str = "",
        tasks: Sequence[str] = (),
        way: str = "",
    ) -> Any:
        """Returns the answers of tasks for images, each prepared exactly as in its task's evaluation.

        Args:
            images: paths, or an array (n, height, width, channels), as for `cwps.predict`.
            task: one task for all images; give either this or `tasks`.
            tasks: one task for each image.
            way: see `Bank.answer`.

        Returns:
            `Predictions` of all images for `task`; for `tasks`, a list with the `Predictions` of each image.

        Raises:
            CwpsError: see `answer`; none or both of `task` and `tasks` are given; an image cannot be read.
        """
        if bool(task) == bool(len(tasks)):
            raise CwpsError("a bank is asked with task= for all images, or with tasks=, one for each image")
        if task:
            known = self._known(task)
            rows = self.answer(_prepared(known, images), task, way)
            return Predictions(known.class_names, np.stack(rows))
        given = [images] if isinstance(images, str | os.PathLike) else images
        if len(given) != len(tasks):
            raise CwpsError(f"{len(given)} images for {len(tasks)} tasks: give one task for each image")
        learned = {name: self._known(name) for name in dict.fromkeys(tasks)}
        by_task: dict[str, list[int]] = {}
        for number, name in enumerate(tasks):
            by_task.setdefault(name, []).append(number)
        prepared: dict[int, np.ndarray] = {}
        for name, numbers in by_task.items():
            some = given[numbers] if isinstance(given, np.ndarray) else [given[one] for one in numbers]
            prepared.update(zip(numbers, _prepared(learned[name], some), strict=True))
        alike: dict[Any, list[int]] = {}
        for number in range(len(tasks)):
            alike.setdefault((prepared[number].shape, prepared[number].dtype), []).append(number)
        rows_of: dict[int, np.ndarray] = {}
        for numbers in alike.values():
            pixels = np.stack([prepared[number] for number in numbers])
            answers = self.answer(pixels, [tasks[number] for number in numbers], way)
            rows_of.update(zip(numbers, answers, strict=True))
        return [
            Predictions(learned[name].class_names, rows_of[number][None]) for number, name in enumerate(tasks)
        ]

    def _known(self, task: str) -> LearnedWith:
        entry = self.served(task)
        return learned_with(entry.pool, entry.version.name)


def _prepared(known: LearnedWith, images: Any) -> np.ndarray:
    """Returns images as the task's model takes them, before the preparation on the device."""
    split = given_images(known, images)
    batch, _ = next(evaluation_batches(split, len(split)))
    return np.asarray(batch["image"])
