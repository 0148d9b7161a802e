"""A task's whole network as a weights file that says by itself what its outputs are and what it wants."""

import json
import os
import pathlib

from cwps_jax import models
from cwps_jax.errors import CwpsError
from cwps_jax.models.pretrained import save_backbone
from cwps_jax.serve.learned_with import learned_with
from cwps_jax.store.pool import Pool


def export(pool: Pool, task: str, file: str | os.PathLike[str], *, keys: str | None = None) -> None:
    """Writes a task's network to a safetensors file in torchvision's or timm's key names.

    The file's metadata has "task", "backbone", and, as JSON, "class_names" and "preparation": the shape of
    an image, and what is done to it before, in the words of `DataConfig`.

    Args:
        pool: the stored models.
        task: a task's name, or "task@n".
        file: to write, replaced if it is there; named `*.safetensors`.
        keys: set of key names, such as "torchvision" or "timm"; the backbone's first by default.

    Raises:
        CwpsError: no such task, a network that is no plain named backbone, or a file that cannot be written
            there.
    """
    known, path = learned_with(pool, task), pathlib.Path(file)
    if path.suffix != ".safetensors":
        raise CwpsError(f"{path}: an export is a safetensors file; name it *.safetensors")
    if not path.parent.is_dir():
        raise CwpsError(f"{path}: no such folder: {path.parent}; make it first")
    if not pool.index.backbone:
        raise CwpsError(
            f"{pool.folder}: its backbone is a model of your own, whose key names are not known; write "
            "pool.effective(task) by safetensors in Python"
        )
    plain = models.create(pool.index.backbone, len(known.class_names))
    if pool.model(known.name, plain) is not plain:
        raise CwpsError(
            f"{pool.folder}: {known.name} is stored by {pool.version(task).method}, which adds to its model: "
            "no plain backbone that others could load; export a task of another method"
        )
    metadata = {
        "task": known.name,
        "backbone": pool.index.backbone,
        "class_names": json.dumps(known.class_names, ensure_ascii=False),
        "preparation": json.dumps({"shape": known.shape, **known.told["preparation"]}),
    }
    save_backbone(path, pool.index.backbone, pool.effective(known.name), keys=keys, metadata=metadata)
