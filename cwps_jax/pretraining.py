"""The pre-trained model of a run: read from a file, or trained on the config's source task."""

import dataclasses
import functools
import hashlib
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

# What the pre-trained model depends on where it is trained in the run.
TRAINED_BY = (
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
        record = {key: getattr(config, key) for key in TRAINED_BY}
    if not (workdir / "pool" / "index.json").exists():
        return None, record
    pool = Pool.open(workdir / "pool")
    if pool.index.backbone != config.backbone:
        raise CwpsError(
            f"{workdir}: made with backbone {pool.index.backbone!r}, config.backbone is {config.backbone!r}; "
            "use another --workdir"
        )
    stored = pool.index.pretrained_record
    for key, value in record.items():
        if stored.get(key) != value:
            raise CwpsError(
                f"{workdir}: made with another pre-trained model ({key} was {stored.get(key)!r}, is "
                f"{value!r}); use another --workdir, or the former config"
            )
    return pool, record


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
