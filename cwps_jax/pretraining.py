"""The pre-trained model of a run: read from a file, or trained on the config's source task."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

from cwps_jax.config import RunConfig
from cwps_jax.errors import CwpsError
from cwps_jax.models.pretrained import load_backbone, local_weights
from cwps_jax.prepare import Prepared, model_options
from cwps_jax.provenance import learned_with, plain
from cwps_jax.saved import PRETRAINED, forget, saves_of_pretraining
from cwps_jax.store.pool import Pool
from cwps_jax.train.evaluation import measure
from cwps_jax.train.heads import cut_to_model
from cwps_jax.train.objectives import accuracy
from cwps_jax.train.records import Observe
from cwps_jax.train.saves import Saving
from cwps_jax.train.trainer import Trainer

# What a model that is trained in the run does not depend on; all else is recorded and compared.
IRRELEVANT = (
    *("method", "settings", "epochs", "budget", "norm_batches", "compare", "keep_compared"),  # of the tasks
    *("byte_budget", "budgets", "tolerance", "row_bits", "rounded_share", "head_share"),
    *("tasks", "overrides", "weights", "shots", "draws", "least_steps", "relearn", "rounds", "keep_head"),
    *("cache", "cache_gigabytes", "cache_dir", "reader_threads", "prefetch"),
    *("parallel", "shard", "accumulate", "remat", "compilation_cache", "profile", "save_minutes"),
    *("metric", "metrics"),
)

# In float32, whatever the tasks become.
WHOLE: dict[str, Any] = {"byte_budget": 0.0, "budgets": (), "row_bits": 32, "head_share": 0.0}


def stored_pool(config: RunConfig, workdir: pathlib.Path) -> Pool | None:
    """Returns the workdir's pool, if it has one.

    Raises:
        CwpsError: there is no such file of weights, or the pool was made with another pre-trained model.
    """
    record = origin(config)
    if not (workdir / "pool" / "index.json").exists():
        return None
    pool = Pool.open(workdir / "pool")
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
                f"{value!r}); use another --workdir, or the earlier config"
            )
    return pool


def origin(config: RunConfig) -> dict[str, Any]:
    """Returns the origin of a run's pre-trained model; plain JSON.

    It is the hash of its file, or all settings on which it depends if it is trained in the run.

    Raises:
        CwpsError: there is no such file of weights.
    """
    if config.weights:
        path = local_weights(config.weights)
        if not path.is_file():
            raise CwpsError(f"config.weights = {config.weights!r}: no such file")
        return {"weights_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    own = {**plain(config), **dataclasses.asdict(config.for_task(config.source).images)}
    own = {key: own[key] for key in sorted(own) if key not in IRRELEVANT}
    return {"trained_by": json.loads(json.dumps(own))}


def pretrained_pool(prepared: Prepared, folder: pathlib.Path) -> Callable[[Observe, Saving | None], Pool]:
    """Returns a function that makes a run's pool; a file of weights is read at once, to find errors in it.

    Args:
        prepared: the run.
        folder: the future folder of the pool.

    Returns:
        A function that trains the pre-trained model if necessary, with progress and saves, and writes the
        pool.

    Raises:
        CwpsError: the file of weights does not fit.
    """
    config, trainer = prepared.config, prepared.trainer
    loaded = (
        load_weights(config, trainer) if config.weights and not (folder / "index.json").exists() else None
    )

    def make(observe: Observe, checkpoints: Saving | None) -> Pool:
        variables, scores = (loaded, {}) if loaded is not None else pretrain(prepared, observe, checkpoints)
        pool = Pool.create(
            folder,
            variables,
            trainer.layout,
            backbone=config.backbone,
            record={**origin(config), **scores},
        )
        forget(checkpoints, PRETRAINED)
        return pool

    return make


def load_weights(config: RunConfig, trainer: Trainer) -> dict[str, Any]:
    """Returns the variables in the config's file of weights. Raises CwpsError if it does not fit."""
    _, height, width, channels = trainer.example.shape
    _, variables = load_backbone(
        config.backbone,
        config.weights,
        image_size=(height, width),
        channels=channels,
        seed=config.seed,
        headless=True,  # each task has a head of its own
        **model_options(config),
    )
    return variables


def pretrain(
    prepared: Prepared, observe: Observe, checkpoints: Saving | None = None
) -> tuple[dict[str, Any], dict[str, float]]:
    """Returns the variables of a model trained on the run's source task, and its accuracies."""
    config, trainer, source = prepared.config, prepared.trainer, prepared.source
    assert source is not None  # there is one where there is no file of weights
    model = prepared.make_model(source.classes or 0)
    training = dataclasses.replace(config.train, method="finetune", epochs=config.source_epochs, **WHOLE)
    told = learned_with(config.source, source, training, config.dtype)
    trained = trainer.train(
        trainer.new_variables(config.seed),
        source.train,
        training,
        observe=observe,
        saves=saves_of_pretraining(checkpoints, trainer.model, told),
    )
    variables = cut_to_model({"params": trained.params, **trained.other}, model, trainer.example)
    predict = functools.partial(trainer.predictor(model), variables, batch_size=config.batch_size)
    scores = {
        name: measure(accuracy, predict(split), split)
        for name, split in (("validation_accuracy", source.validation), ("accuracy", source.test))
    }
    return variables, scores
