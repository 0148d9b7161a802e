"""The pre-trained model of a run: read from a file, or trained on the config's source task."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from cwps_jax.config import RunConfig
from cwps_jax.data.pipeline import steps_per_epoch
from cwps_jax.data.task import TaskData
from cwps_jax.errors import CwpsError
from cwps_jax.learn import cut_to_model
from cwps_jax.models.pretrained import load_backbone, local_weights
from cwps_jax.store.pool import Pool
from cwps_jax.train.evaluation import measure
from cwps_jax.train.objectives import accuracy
from cwps_jax.train.records import Progress
from cwps_jax.train.trainer import Trainer

# What a model that is trained in the run does not depend on; all else is recorded and compared.
IRRELEVANT = (
    *("method", "settings", "epochs", "budget", "norm_batches", "compare", "keep_compared"),  # of the tasks
    *("tasks", "overrides", "weights", "shots", "draws", "least_steps"),
    *("cache", "cache_gigabytes", "cache_dir", "reader_threads", "prefetch"),
    *("parallel", "remat", "search_gigabytes", "compilation_cache", "profile"),
)


def model_options(config: RunConfig) -> dict[str, Any]:
    """Returns the backbone's options; what is left at its default is not asked of a family without it."""
    asked = {"stochastic_depth": config.stochastic_depth, "remat": config.remat}
    given = {name: value for name, value in asked.items() if value}
    return {"dtype": jnp.dtype(config.dtype), **given}


def stored_pool(config: RunConfig, workdir: pathlib.Path) -> tuple[Pool | None, dict[str, Any]]:
    """Returns the workdir's pool, if it has one, and what is recorded of the run's pre-trained model.

    Raises:
        CwpsError: there is no such file of weights, or the pool was made with another pre-trained model.
    """
    if config.weights:
        path = local_weights(config.weights)
        if not path.is_file():
            raise CwpsError(f"config.weights = {config.weights!r}: no such file")
        record: dict[str, Any] = {"weights_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    else:
        record = {"trained_by": source_settings(config)}
    if not (workdir / "pool" / "index.json").exists():
        return None, record
    pool = Pool.open(workdir / "pool", search_gigabytes=config.search_gigabytes)
    if pool.index.backbone != config.backbone:
        raise CwpsError(
            f"{workdir}: made with backbone {pool.index.backbone!r}, config.backbone is {config.backbone!r}; "
            "use another --workdir"
        )
    now, before = (one.get("trained_by", one) for one in (record, pool.index.pretrained_record))
    if "source" in pool.index.pretrained_record and not config.weights:  # a pool of before recorded less
        now = {key: value for key, value in now.items() if key in before}
    for key, value in now.items():
        if before.get(key) != value:
            raise CwpsError(
                f"{workdir}: made with another pre-trained model ({key} was {before.get(key)!r}, is "
                f"{value!r}); use another --workdir, or the former config"
            )
    return pool, record


def source_settings(config: RunConfig) -> dict[str, Any]:
    """Returns all that a pre-trained model depends on which is trained in the run; plain JSON."""
    own = {**dataclasses.asdict(config), **dataclasses.asdict(config.for_task(config.source).images)}
    return json.loads(json.dumps({key: own[key] for key in sorted(own) if key not in IRRELEVANT}))


def load_weights(config: RunConfig, trainer: Trainer) -> dict[str, Any]:
    """Returns the variables that the config's file of weights holds. Raises CwpsError if it does not fit."""
    _, height, width, channels = trainer.example.shape
    _, variables = load_backbone(
        config.backbone,
        config.weights,
        image_size=(height, width),
        channels=channels,
        seed=config.seed,
        **model_options(config),
    )
    return variables


def check_source(config: RunConfig, source: TaskData) -> None:
    """Raises CwpsError where the source task has fewer images than a batch."""
    steps_per_epoch(source.train, config.batch_size)


def pretrain(
    config: RunConfig,
    source: TaskData,
    trainer: Trainer,
    model: nn.Module,
    observe: Callable[[Progress], None],
) -> tuple[dict[str, Any], dict[str, float]]:
    """Returns the variables of a model trained on the source task, and its accuracies.

    Args:
        config: the run's.
        source: the source task's data, with the number of classes beside each item.
        trainer: of the run.
        model: the backbone with the source task's head.
        observe: called once an epoch.
    """
    trained = trainer.train(
        trainer.new_variables(config.seed),
        source.train,
        dataclasses.replace(config.train, method="finetune", epochs=config.source_epochs),
        observe=observe,
    )
    variables = {"params": cut_to_model(trained.params, model, trainer.example), **trained.other}
    predict = functools.partial(trainer.predictor(model), variables, batch_size=config.batch_size)
    scores = {
        name: measure(accuracy, predict(split), split)
        for name, split in (("validation_accuracy", source.validation), ("accuracy", source.test))
    }
    return variables, scores
