"""The settings and data to which a saved training belongs, and its folder."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from etils import epath

from cwps_jax import distributed
from cwps_jax.provenance import differences
from cwps_jax.store.pool import Pool
from cwps_jax.train.saves import Saves, Saving

# Of what a task is learned with: what its training does not depend on, or `Saves` knows itself.
OF_THIS_MACHINE = ("cache", "cache_gigabytes", "cache_dir", "reader_threads", "prefetch")
SHOWN = 12  # digits of a hash
PRETRAINED = "pretrained"  # the folder of the pre-trained model's training: no task is called so

Checkpoints = Saving | str | os.PathLike[str]


def as_saving(checkpoints: Checkpoints) -> Saving:
    """Returns the `Saving` itself, or one for a folder."""
    return checkpoints if isinstance(checkpoints, Saving) else Saving(checkpoints)


def saves_of_task(
    checkpoints: Checkpoints | None, pool: Pool, name: str, model: nn.Module, told: Mapping[str, Any]
) -> Saves | None:
    """Returns the saved points of a task's training by one method.

    Args:
        checkpoints: the folder and the times of saving; None saves nothing.
        pool: from which the task is learned.
        name: of the task.
        model: that is trained.
        told: what it is learned with, see `provenance.learned_with`.
    """
    if checkpoints is None:
        return None
    method = told["config"]["method"]["name"]
    beside = {
        version.name: [version.own_sha256[:SHOWN], version.rows_sha256[:SHOWN]]
        for version in pool.index.versions
        if version.task != name and (version.method == method or not version.compared)
    }
    belongs = {**training_of(told, model), "pretrained model": pool.index.pretrained_sha256[:SHOWN]}
    return Saves(as_saving(checkpoints), f"{name}/{method}", belongs, beside, differences)


def saves_of_pretraining(
    checkpoints: Saving | None, model: nn.Module, told: Mapping[str, Any]
) -> Saves | None:
    """Returns the saved points of the pre-trained model's training.

    Args:
        checkpoints: the folder and the times of saving; None saves nothing.
        model: that is trained.
        told: what it is trained with, see `provenance.learned_with`.
    """
    if checkpoints is None:
        return None
    return Saves(checkpoints, f"{PRETRAINED}/finetune", training_of(told, model), {}, differences)


def training_of(told: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Returns what of all that a task is learned with decides its training; of a model its plain settings."""
    settings = {
        field.name: getattr(model, field.name)
        for field in dataclasses.fields(model)
        if field.name not in ("parent", "name")
    }
    plain = {key: value for key, value in settings.items() if isinstance(value, bool | int | float | str)}
    images = told["images"] and {
        key: value for key, value in told["images"].items() if key not in OF_THIS_MACHINE
    }
    return {
        "config": told["config"],
        "model": {"class": type(model).__name__, **plain},
        "images": images,
        "classes": told["class_names"],
        "input": told["input"],
        "training data": told["fingerprints"]["train"][:SHOWN],
        "dtype": told["dtype"],
        "versions": {key: version for key, version in told["versions"].items() if key != "device"},
    }


def forget(checkpoints: Checkpoints | None, name: str) -> None:
    """Removes what is saved of a task's training, by every method: the task is in the pool."""
    if checkpoints is not None and distributed.first():
        folder = epath.Path(as_saving(checkpoints).folder) / name
        if folder.exists():
            folder.rmtree()
