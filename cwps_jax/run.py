"""A run of main in two processes: `learn` fills the pool, `finish` measures what the pool really holds."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from rich.console import Console

from cwps_jax import data, models
from cwps_jax.config import Compared, RunConfig
from cwps_jax.core.masks import check_budget
from cwps_jax.data.pipeline import steps_per_epoch, with_classes
from cwps_jax.data.task import TaskData
from cwps_jax.errors import CwpsError
from cwps_jax.learn import cut_to_model, learn_task, make_trainer, train_task
from cwps_jax.models.pretrained import load_backbone, local_weights
from cwps_jax.parallel import Parallel
from cwps_jax.report.progress import RunProgress
from cwps_jax.report.results import measure_pool, versions, write_json
from cwps_jax.report.table import show_results
from cwps_jax.store.pool import Pool
from cwps_jax.train.evaluation import measure
from cwps_jax.train.objectives import accuracy
from cwps_jax.train.trainer import Trainer


def learn(config: RunConfig, workdir: pathlib.Path, console: Console) -> None:
    """Learns every task of the config that is not in the workdir's pool yet.

    Raises:
        CwpsError: the config, the data or the workdir does not fit; nothing has been written then.
    """
    load = _loader(config)
    tasks = {name: load(name) for name in config.tasks}
    source = load(config.source) if config.source and not config.weights else None
    make_model = _model_maker(config)
    # One head size for all, so that all tasks share compiled steps; each keeps its own part of it.
    everything = [*tasks.values(), *([source] if source else [])]
    widest = max(everything, key=lambda one: one.classes or 0)
    trainer = make_trainer(make_model(widest.classes or 0), widest, config=config.train)
    _check(config, everything, trainer)
    pool, pretrained = _stored_pool(config, workdir)
    # Loaded before anything is written: a file that does not fit leaves no workdir behind.
    variables: dict[str, Any] = {}
    scores: dict[str, float] = {}
    if pool is None and config.weights:
        _, *size, channels = trainer.example.shape
        height, width = size
        _, variables = load_backbone(
            config.backbone,
            config.weights,
            image_size=(height, width),
            channels=channels,
            seed=config.seed,
            **_options(config),
        )
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "config.json", {"config": dataclasses.asdict(config), "versions": versions()})

    compared = tuple(method for method in config.compare if method != config.method)
    epochs = config.source_epochs * (source is not None) + len(tasks) * config.epochs * (1 + len(compared))
    with RunProgress(workdir, epochs, console) as progress:
        if pool is None:
            if source:
                variables, scores = _pretrain(config, source, trainer, progress)
            pool = Pool.create(
                workdir / "pool",
                variables,
                trainer.layout,
                backbone=config.backbone,
                record={**pretrained, **scores},
            )
        else:
            progress.skip(config.source_epochs * (source is not None))
        for name, task in tasks.items():
            if name in pool.tasks:
                progress.say(f"{name} is in the pool already: skipped")
                progress.skip(config.epochs * (1 + len(compared)))
                continue
            _learn_one(config, name, task, compared, pool, make_model, trainer, progress)


def finish(config: RunConfig, workdir: pathlib.Path, console: Console) -> dict[str, Any]:
    """Measures every task of the workdir's pool, writes results.json and report/, and shows the table.

    It takes nothing from the process that trained, so what it measures is what is stored.
    """
    from cwps_jax.report.pictures import draw_report  # matplotlib is not needed to learn

    pool = Pool.open(workdir / "pool")
    results = measure_pool(
        pool,
        config.method,
        _loader(config),
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


def _loader(config: RunConfig) -> Callable[[str], TaskData]:
    size = config.image_size
    if not size and config.data not in data.EMBEDDED:
        size = models.find(config.backbone).image_size
    return functools.partial(data.load, config.data, data_dir=config.data_dir, image_size=size)


def _options(config: RunConfig) -> dict[str, Any]:
    """Returns the backbone's options; what is left at its default is not asked of a family without it."""
    asked = {"stochastic_depth": config.stochastic_depth, "remat": config.remat}
    given = {name: value for name, value in asked.items() if value}
    return {"dtype": jnp.dtype(config.dtype), **given}


def _model_maker(config: RunConfig) -> Callable[[int], nn.Module]:
    return functools.cache(lambda classes: models.create(config.backbone, classes, **_options(config)))


def _check(config: RunConfig, tasks: list[TaskData], trainer: Trainer) -> None:
    """Raises CwpsError for what would otherwise only be found after minutes of training."""
    check_budget(trainer.layout, config.budget)
    for task in tasks:
        steps_per_epoch(task.train, config.batch_size)
    trainer.parallel.check_batch(config.batch_size)


def _stored_pool(config: RunConfig, workdir: pathlib.Path) -> tuple[Pool | None, dict[str, Any]]:
    """Returns the workdir's pool, if it has one, and what its pre-trained model has to be."""
    if config.weights:
        path = local_weights(config.weights)
        if not path.is_file():
            raise CwpsError(f"config.weights = {config.weights!r}: no such file")
        pretrained: dict[str, Any] = {"weights_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    else:
        keys = (
            "data",
            "source",
            "source_epochs",
            "seed",
            "batch_size",
            "optimizer",
            "learning_rate",
            "learning_rate_warmup",
            "momentum",
            "weight_decay",
            "label_smoothing",
            "layer_decay",
            "ema",
            "stochastic_depth",
        )
        pretrained = {key: getattr(config, key) for key in keys}
    if not (workdir / "pool" / "index.json").exists():
        return None, pretrained
    pool = Pool.open(workdir / "pool")
    if pool.index.backbone != config.backbone:
        raise CwpsError(
            f"{workdir}: made with backbone {pool.index.backbone!r}, config.backbone is {config.backbone!r}; "
            "use another --workdir"
        )
    stored = pool.index.pretrained_record
    for key, value in pretrained.items():
        if stored.get(key) != value:
            raise CwpsError(
                f"{workdir}: made with another pre-trained model ({key} was {stored.get(key)!r}, is "
                f"{value!r}); use another --workdir, or the former config"
            )
    return pool, pretrained


def _pretrain(
    config: RunConfig, source: TaskData, trainer: Trainer, progress: RunProgress
) -> tuple[dict[str, Any], dict[str, float]]:
    """Returns the variables of a model trained on the source task, and its accuracies."""
    model = _model_maker(config)(source.classes or 0)
    trained = trainer.train(
        trainer.new_variables(config.seed),
        _padded(source).train,
        dataclasses.replace(config.train, method="finetune", epochs=config.source_epochs),
        observe=functools.partial(progress.epoch, config.source),
    )
    variables = {"params": cut_to_model(trained.params, model, trainer.example), **trained.other}
    predict = trainer.predictor(model)
    scores = {
        name: measure(accuracy, predict(variables, split, config.batch_size), split)
        for name, split in (("validation_accuracy", source.validation), ("accuracy", source.test))
    }
    progress.say(f"pre-trained model: {config.source}, accuracy {scores['accuracy']:.3f}")
    return variables, scores


def _learn_one(
    config: RunConfig,
    name: str,
    task: TaskData,
    compared: tuple[Compared, ...],
    pool: Pool,
    make_model: Any,
    trainer: Trainer,
    progress: RunProgress,
) -> None:
    model, padded = make_model(task.classes or 0), _padded(task)
    observe = functools.partial(progress.epoch, name)
    notes = {}
    for method in compared:
        settings = dataclasses.replace(config.train, method=method)
        _, variables = train_task(pool, model, padded, settings, trainer, observe)
        outputs = trainer.predictor(model)(variables, task.test, config.batch_size)
        notes[f"{method}_accuracy"] = measure(accuracy, outputs, task.test)
    learned = learn_task(
        pool, name, model, padded, config=config.train, trainer=trainer, observe=observe, notes=notes
    )
    others = "".join(f", {key.split('_')[0]} {value:.3f}" for key, value in notes.items())
    progress.say(f"{name}: accuracy {learned.metric:.3f}{others}, keeps {learned.params_ratio:.3f}x")


def _padded(task: TaskData) -> TaskData:
    """Returns the task with its number of classes beside each item, for a head that has more."""
    classes = task.classes or 0
    return dataclasses.replace(
        task,
        train=with_classes(task.train, classes),
        validation=with_classes(task.validation, classes),
        test=with_classes(task.test, classes),
    )
