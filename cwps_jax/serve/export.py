"""A task's whole network as one file, which also describes its inputs and outputs."""

import json
import os
import pathlib

import flax.linen as nn

from cwps_jax import models
from cwps_jax.errors import CwpsError
from cwps_jax.models.pretrained import save_backbone
from cwps_jax.serve.export_program import PROGRAM_SUFFIX, write_program
from cwps_jax.serve.learned_with import learned_with
from cwps_jax.store.pool import Pool

WEIGHTS_SUFFIX = ".safetensors"


def export(
    pool: Pool,
    task: str,
    file: str | os.PathLike[str],
    *,
    keys: str | None = None,
    model: nn.Module | None = None,
) -> None:
    """Writes a task's network to one file, in the form that the end of the file's name selects.

    `*.safetensors` holds the weights under torchvision's or timm's key names. Its metadata has "task",
    "backbone", and, as JSON, "class_names" and "preparation": the shape of an image and the settings of its
    preparation, named as in `DataConfig`. `*.stablehlo.zip` holds a program that runs with JAX alone, see
    `cwps_jax.serve.export_program`.

    Args:
        pool: the stored models.
        task: a task's name, or "task@n".
        file: the file to write, `*.safetensors` or `*.stablehlo.zip`; it is replaced if it exists.
        keys: the set of key names of the weights, such as "torchvision" or "timm"; by default the first set
            of the backbone.
        model: the plain model with the task's head, for a program of a backbone of your own.

    Raises:
        CwpsError: there is no such task, weights are asked for and the network is not a plain named backbone,
            the program cannot be made, or the file cannot be written there.

    Examples:
        >>> export(pool, "birds", "birds.stablehlo.zip")  # doctest: +SKIP
    """
    path = pathlib.Path(file)
    if not path.name.endswith((WEIGHTS_SUFFIX, PROGRAM_SUFFIX)):
        raise CwpsError(
            f"{path}: an export is a safetensors file or a program; name it *{WEIGHTS_SUFFIX} or "
            f"*{PROGRAM_SUFFIX}"
        )
    if not path.parent.is_dir():
        raise CwpsError(f"{path}: no such folder: {path.parent}; make it first")
    if path.name.endswith(PROGRAM_SUFFIX):
        if keys is not None:
            raise CwpsError(f"{path}: a program has no key names; leave out {keys!r}")
        return write_program(pool, task, path, model)
    _write_weights(pool, task, path, keys)


def _write_weights(pool: Pool, task: str, path: pathlib.Path, keys: str | None) -> None:
    known = learned_with(pool, task)
    if not pool.index.backbone:
        raise CwpsError(
            f"{pool.folder}: its backbone is a model of your own, whose key names are not known; export a "
            f"program, *{PROGRAM_SUFFIX}, or write pool.effective(task) by safetensors in Python"
        )
    plain = models.create(pool.index.backbone, len(known.class_names))
    if pool.model(known.name, plain) is not plain:
        raise CwpsError(
            f"{pool.folder}: {known.name} is stored by {pool.version(task).method}, which adds to its model: "
            f"no plain backbone that others could load; export a program, *{PROGRAM_SUFFIX}"
        )
    metadata = {
        "task": known.name,
        "backbone": pool.index.backbone,
        "class_names": json.dumps(known.class_names, ensure_ascii=False),
        "preparation": json.dumps({"shape": known.shape, **known.told["preparation"]}),
    }
    save_backbone(path, pool.index.backbone, pool.effective(known.name), keys=keys, metadata=metadata)
