"""Preparation of a run: data, settings, and a trainer. Every mistake in them is found here."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from cwps_jax import data, models
from cwps_jax.config import RunConfig
from cwps_jax.data.cache import PixelCache, open_cache
from cwps_jax.data.pipeline import steps_per_epoch
from cwps_jax.data.split import Split
from cwps_jax.data.task import TaskData
from cwps_jax.errors import CwpsError
from cwps_jax.learn import make_trainer
from cwps_jax.profiling import Profiler
from cwps_jax.settings import TrainConfig
from cwps_jax.train.small_data import fit_to_data
from cwps_jax.train.trainer import Trainer

Load = Callable[[RunConfig, str, PixelCache | None], TaskData]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run that can start.

    Attributes:
        config: the run's, of one draw.
        tasks: {name: data}, in the order in which they are learned, for a
            head that has more classes.
        settings: {name of a task: {method: its `TrainConfig`}}, the run's own method first.
        source: data of the task on which the pre-trained model is trained; None if it is read from a file.
        make_model: from a number of classes to the plain model.
        trainer: the trainer for all tasks and methods.
        cache: the cache of decoded images.
    """

    config: RunConfig
    tasks: Mapping[str, TaskData]
    settings: Mapping[str, Mapping[str, TrainConfig]]
    source: TaskData | None
    make_model: Callable[[int], nn.Module]
    trainer: Trainer
    cache: PixelCache | None

    def epochs(self, task: str) -> int:
        """Returns the number of epochs of a task, by all methods together."""
        return sum(one.epochs for one in self.settings[task].values())


def prepare(
    config: RunConfig,
    trainer: Trainer | None,
    profiler: Profiler | None,
    stored: Collection[str] = (),
    load: Load | None = None,
) -> Prepared:
    """Returns a run that can start; nothing is written.

    Args:
        config: the run's, of one draw.
        trainer: the trainer of an earlier draw, whose compiled steps are used again; None to make one.
        profiler: traces and times a few steps of every stage.
        stored: names of tasks that the workdir's pool already has.
        load: the function that loads a task, `load_task` by default; runs that share data have their own.

    Raises:
        CwpsError: a mistake that would otherwise be found only after minutes.
    """
    load = load or load_task
    cache = open_image_cache(config)
    tasks = {}
    for name in config.tasks:
        try:
            tasks[name] = load(config, name, cache)
        except CwpsError as error:
            if name not in stored:
                raise
            raise CwpsError(
                f"{error}; task {name!r} is learned already: leave it out of config.tasks, and it keeps its "
                "numbers"
            ) from error
    source = None
    if not config.weights:
        source = load(dataclasses.replace(config, shots=0), config.source, cache)
        steps_per_epoch(source.train, config.batch_size)
    make_model = model_maker(config)
    # One head size for all, so that all tasks share compiled steps; each keeps its own part of it.
    widest = max([*tasks.values(), *([source] if source else [])], key=lambda one: one.classes or 0)
    trainer = trainer or make_trainer(
        make_model(widest.classes or 0),
        widest,
        metric=config.metric,
        config=config.train,
        profiler=profiler,
    )
    by_method = dict.fromkeys((config.method, *config.compare))
    settings = {
        name: {method: _settings(config, name, method, task, trainer) for method in by_method}
        for name, task in tasks.items()
    }
    padded = {name: _padded(task) for name, task in tasks.items()}
    return Prepared(config, padded, settings, source and _padded(source), make_model, trainer, cache)


def load_task(config: RunConfig, task: str, cache: PixelCache | None) -> TaskData:
    """Returns a task's data, at the config's image size or that of the backbone's published weights."""
    settings = config.for_task(task).images
    if not settings.image_size and settings.data not in data.EMBEDDED:
        settings = dataclasses.replace(settings, image_size=models.find(config.backbone).image_size)
    return data.load(settings, task, seed=config.seed, cache=cache)


def open_image_cache(config: RunConfig) -> PixelCache | None:
    """Returns the cache of decoded images that the config asks for."""
    folder = pathlib.Path(config.cache_dir).expanduser() / "images"
    return open_cache(config.cache, folder, int(config.cache_gigabytes * 1e9))


def model_maker(config: RunConfig) -> Callable[[int], nn.Module]:
    """Returns the function that makes the plain model for a number of classes, the same one each time."""
    options = model_options(config)
    return functools.cache(lambda classes: models.create(config.backbone, classes, **options))


def model_options(config: RunConfig) -> dict[str, Any]:
    """Returns the backbone's options that differ from their defaults, and those that its family has."""
    asked = {"stochastic_depth": config.stochastic_depth, "remat": config.remat}
    given = {name: value for name, value in asked.items() if value}
    return {"dtype": jnp.dtype(config.dtype), **given}


def _settings(config: RunConfig, name: str, method: str, task: TaskData, trainer: Trainer) -> TrainConfig:
    own = config.for_task(name)
    group = task.train.preparation.group * own.accumulate
    fitted = fit_to_data(
        own.train_by(method),
        len(task.train),
        least_steps=config.least_steps,
        few_shot=own.shots > 0,
        multiple=len(trainer.parallel.devices) * group,
    )
    trainer.parallel.check_batch(fitted.batch_size, group)
    for one in fitted.by_budget():
        fitted.method.check(trainer.network, one)
    return fitted


def _padded(task: TaskData) -> TaskData:
    """Returns the task with its number of classes beside each item, for a head that has more."""

    def pad(split: Split) -> Split:
        return split.with_fields(classes=np.full(len(split), task.classes or 0, np.int32))

    return dataclasses.replace(
        task, train=pad(task.train), validation=pad(task.validation), test=pad(task.test)
    )
