"""A run of main in two processes: `learn` fills the pool, `finish` measures what the pool really holds."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import numpy as np
from rich.console import Console

from cwps_jax import data, models
from cwps_jax.config import Compared, RunConfig, TrainConfig
from cwps_jax.core.masks import check_budget
from cwps_jax.data.cache import PixelCache, open_cache
from cwps_jax.data.split import Split
from cwps_jax.data.task import TaskData
from cwps_jax.learn import check_classes, learn_task, make_trainer, train_task
from cwps_jax.parallel import Parallel
from cwps_jax.pretraining import check_source, load_weights, model_options, pretrain, stored_pool
from cwps_jax.profiling import Profiler
from cwps_jax.report.costs import show_costs
from cwps_jax.report.draws import draw_folders, summarise
from cwps_jax.report.progress import RunProgress
from cwps_jax.report.results import measure_pool, versions, write_json
from cwps_jax.report.table import show_draws, show_results
from cwps_jax.store.pool import Pool
from cwps_jax.train.evaluation import measure
from cwps_jax.train.objectives import accuracy
from cwps_jax.train.small_data import fit_to_data
from cwps_jax.train.trainer import Trainer


def learn(config: RunConfig, workdir: pathlib.Path, console: Console) -> None:
    """Learns every task of the config that is not in the workdir's pool yet, in each of the draws.

    Raises:
        CwpsError: the config, the data or the workdir does not fit; nothing has been written then.
    """
    profiler = None
    if config.profile:
        profiler = Profiler(workdir / "profile", dtype=config.dtype, recomputes=config.remat)
    trainer = None  # its compiled steps serve all draws
    for draw, folder in draw_folders(config, workdir):
        if draw is not config:
            console.print(f"{folder.name}: seed {draw.seed}", highlight=False)
        trainer = _learn_draw(draw, folder, console, trainer, profiler)
    if profiler:
        show_costs(profiler, console)


def finish(config: RunConfig, workdir: pathlib.Path, console: Console) -> dict[str, Any]:
    """Measures every task of the workdir's pool, writes results.json and report/, and shows the table.

    It takes nothing from the process that trained, so what it measures is what is stored. With several
    draws each has results and a report of its own, and the workdir's results.json sums them up.
    """
    finished = [_finish_draw(*draw, console) for draw in draw_folders(config, workdir)]
    if config.draws == 1:
        return finished[0]
    results = summarise(finished)
    write_json(workdir / "results.json", results)
    show_draws(results, console)
    console.print(f"Results: {workdir / 'results.json'}", soft_wrap=True, highlight=False)
    return results


def _learn_draw(
    config: RunConfig,
    workdir: pathlib.Path,
    console: Console,
    trainer: Trainer | None,
    profiler: Profiler | None,
) -> Trainer:
    cache = _open_cache(config)
    with console.status("looking through the data"):
        tasks = {name: load_task(config, name, cache) for name in config.tasks}
        source = None
        if not config.weights:
            source = load_task(dataclasses.replace(config, shots=0), config.source, cache)
    make_model = _model_maker(config)
    # One head size for all, so that all tasks share compiled steps; each keeps its own part of it.
    everything = [*tasks.values(), *([source] if source else [])]
    widest = max(everything, key=lambda one: one.classes or 0)
    trainer = trainer or make_trainer(
        make_model(widest.classes or 0), widest, config=config.train, profiler=profiler
    )
    settings = {name: _settings(config, name, task, trainer) for name, task in tasks.items()}
    if source is not None:
        check_source(config, source)
    pool, record = stored_pool(config, workdir)
    if pool:
        for name in pool.tasks:
            if name in tasks:
                check_classes(pool, name, tasks[name])
    compared = tuple(method for method in config.compare if method != config.method)
    epochs = {name: settings[name].epochs * (1 + len(compared)) for name in tasks}

    # Before anything is written: a file of weights that does not fit leaves no workdir behind.
    variables = load_weights(config, trainer) if config.weights and not pool else {}
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "config.json", {"config": dataclasses.asdict(config), "versions": versions()})
    source_epochs = config.source_epochs * (source is not None)
    with RunProgress(workdir, source_epochs + sum(epochs.values()), console) as progress:
        for name in config.overrides:
            if name not in (*tasks, config.source):
                progress.say(f"config.overrides.{name}: not among the tasks of this run")
        for name, task in tasks.items():
            _tell(progress, config, name, task, settings[name])
        if pool:
            progress.skip(source_epochs)
        else:
            if source is not None:
                variables, scores = _pretrain(config, source, make_model, trainer, progress)
                record = {**record, **scores}
            pool = Pool.create(
                workdir / "pool",
                variables,
                trainer.layout,
                backbone=config.backbone,
                record=record,
            )
        for name, task in tasks.items():
            if name in pool.tasks:
                progress.say(f"{name} is in the pool already: skipped")
                progress.skip(epochs[name])
                continue
            _learn_one(settings[name], name, task, compared, pool, make_model, trainer, progress)
            if cache:
                cache.clear()  # the next task needs the room, and none comes back to this one's images
    return trainer


def _finish_draw(config: RunConfig, workdir: pathlib.Path, console: Console) -> dict[str, Any]:
    from cwps_jax.report.pictures import draw_report  # matplotlib is not needed to learn

    pool = Pool.open(workdir / "pool")
    results = measure_pool(
        pool,
        config.method,
        functools.partial(load_task, config, cache=_open_cache(config)),
        _model_maker(config),
        Parallel(config.parallel),
        config.batch_size,
    )
    write_json(workdir / "results.json", results)
    pictures = draw_report(pool, results, workdir / "report")
    show_results(results, console)
    console.print(f"Results: {workdir / 'results.json'}", soft_wrap=True, highlight=False)
    for picture in pictures:
        console.print(f"Picture: {picture}", soft_wrap=True, highlight=False)
    return results


def load_task(config: RunConfig, task: str, cache: PixelCache | None) -> TaskData:
    """Returns a task's data, at the size that the config asks for or the backbone was published with."""
    settings = config.for_task(task).images
    if not settings.image_size and settings.data not in data.EMBEDDED:
        settings = dataclasses.replace(settings, image_size=models.find(config.backbone).image_size)
    return data.load(settings, task, seed=config.seed, cache=cache)


def _open_cache(config: RunConfig) -> PixelCache | None:
    folder = pathlib.Path(config.cache_dir).expanduser() / "images"
    return open_cache(config.cache, folder, int(config.cache_gigabytes * 1e9))


def _model_maker(config: RunConfig) -> Callable[[int], nn.Module]:
    return functools.cache(lambda classes: models.create(config.backbone, classes, **model_options(config)))


def _settings(config: RunConfig, name: str, task: TaskData, trainer: Trainer) -> TrainConfig:
    """Returns how a task is learned. Raises CwpsError for what would otherwise be found after minutes."""
    own = config.for_task(name)
    check_budget(trainer.layout, own.budget)
    group = task.train.preparation.group
    fitted = fit_to_data(
        own.train,
        len(task.train),
        least_steps=config.least_steps,
        few_shot=own.shots > 0,
        multiple=len(trainer.parallel.devices) * group,
    )
    trainer.parallel.check_batch(fitted.batch_size, group)
    return fitted


def _tell(progress: RunProgress, config: RunConfig, name: str, task: TaskData, settings: TrainConfig) -> None:
    progress.say(f"{name}: {task.note}")
    given = config.for_task(name)
    for key in ("batch_size", "epochs"):
        if getattr(settings, key) != getattr(given, key):
            progress.say(
                f"{name}: config.{key} = {getattr(settings, key)} instead of {getattr(given, key)}, for "
                f"{len(task.train)} training images"
            )


def _pretrain(
    config: RunConfig,
    source: TaskData,
    make_model: Callable[[int], nn.Module],
    trainer: Trainer,
    progress: RunProgress,
) -> tuple[dict[str, Any], dict[str, float]]:
    observe = functools.partial(progress.epoch, config.source)
    found = pretrain(config, _padded(source), trainer, make_model(source.classes or 0), observe)
    progress.say(f"pre-trained model: {config.source}, accuracy {found[1]['accuracy']:.3f}")
    return found


def _learn_one(
    config: TrainConfig,
    name: str,
    task: TaskData,
    compared: tuple[Compared, ...],
    pool: Pool,
    make_model: Callable[[int], nn.Module],
    trainer: Trainer,
    progress: RunProgress,
) -> None:
    model, padded = make_model(task.classes or 0), _padded(task)
    observe = functools.partial(progress.epoch, name)
    notes: dict[str, Any] = {"training_images": len(task.train)}
    for method in compared:
        settings = dataclasses.replace(config, method=method)
        _, variables = train_task(pool, model, padded, settings, trainer, observe)
        outputs = trainer.predictor(model)(variables, padded.test, config.batch_size)
        notes[f"{method}_accuracy"] = measure(accuracy, outputs, padded.test)
    learned = learn_task(
        pool, name, model, padded, config=config, trainer=trainer, observe=observe, notes=notes
    )
    others = "".join(f", {method} {notes[f'{method}_accuracy']:.3f}" for method in compared)
    progress.say(f"{name}: accuracy {learned.metric:.3f}{others}, keeps {learned.params_ratio:.3f}x")


def _padded(task: TaskData) -> TaskData:
    """Returns the task with its number of classes beside each item, for a head that has more."""

    def pad(split: Split) -> Split:
        return split.with_fields(classes=np.full(len(split), task.classes or 0, np.int32))

    return dataclasses.replace(
        task, train=pad(task.train), validation=pad(task.validation), test=pad(task.test)
    )
