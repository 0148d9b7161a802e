"""A task's network as a StableHLO program, in a zip archive that a reader opens with JAX alone.

::

    birds.stablehlo.zip
      task.json            the program's inputs and outputs: class names, the shape and dtype of images, and
                           their preparation, both the part before the program and the part inside it
      program.bin          the program, for `jax.export.deserialize`: weights, normalisation and network, for
                           any number of images, on a CPU, a CUDA GPU or a TPU

A zip archive keeps the two together, is replaced as one file, and detects a flipped bit when it is read.
"""

import json
import pathlib
import zipfile
from typing import Any

import flax.linen as nn
import jax
from jax import export as jax_export

from cwps_jax.errors import CwpsError
from cwps_jax.extras import check_extra
from cwps_jax.files import replacing
from cwps_jax.inputs import Inputs
from cwps_jax.serve.answers import predictor_of
from cwps_jax.serve.learned_with import LearnedWith, learned_with
from cwps_jax.store.pool import Pool
from cwps_jax.train.step import apply_model
from cwps_jax.version import __version__

PROGRAM_SUFFIX = ".stablehlo.zip"
PROGRAM, TASK = "program.bin", "task.json"
PLATFORMS = ("cpu", "cuda", "tpu")


def exported_program(pool: Pool, task: str, model: nn.Module | None = None) -> jax_export.Exported:
    """Returns a task's network as a program from images, (batch, height, width, channels), to its outputs.

    The images have the size and dtype that the task's stored images have after resizing: uint8 pixels if
    the task was learned from pictures. The program normalises them itself.

    Args:
        pool: the stored models.
        task: a task's name, or "task@n".
        model: the plain model with the task's head, if the pool's backbone is a model of your own.

    Raises:
        CwpsError: there is no such task, the model has inputs other than images, or its computation depends
            on the number of images.
    """
    known = learned_with(pool, task, classified=False)
    network, variables = predictor_of(pool, known, model).model, pool.effective(known.name)
    if isinstance(network, Inputs):
        raise CwpsError(
            f"{known.name}: its model takes {', '.join(map(str, jax.tree.leaves(network.arguments)))}, and a "
            "program takes images alone; export it by jax.export in Python"
        )
    other = {key: tree for key, tree in variables.items() if key != "params"}

    def answer(images: jax.Array) -> Any:
        prepared = known.preparation.normalise(images)
        return apply_model(network, variables["params"], other, prepared, train=False)

    (batch,) = jax_export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *known.shape), _dtype(known))
    try:
        return jax_export.export(jax.jit(answer), platforms=PLATFORMS)(images)
    except (jax.errors.InconclusiveDimensionOperation, TypeError) as error:
        why = str(error).splitlines()[0]  # `len`, which must return a number, raises a TypeError.
        raise CwpsError(
            f"{known.name}: its model cannot be traced for any number of images ({why}); compute nothing in "
            "it from the batch's size"
        ) from error


def write_program(pool: Pool, task: str, path: pathlib.Path, model: nn.Module | None = None) -> None:
    """Writes a task's program, and the description of its inputs and outputs, to a zip archive.

    Args:
        pool: the stored models.
        task: a task's name, or "task@n".
        path: the file to write; it is replaced if it exists.
        model: see `exported_program`.

    Raises:
        CwpsError: see `exported_program`; or the package flatbuffers, which JAX needs to write a program, is
            not installed.
    """
    check_extra("export", f"{path}, a program,")
    program = exported_program(pool, task, model)
    about = json.dumps(_described(pool, learned_with(pool, task, classified=False)), ensure_ascii=False)
    with replacing(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        # Such members have no modification time, so that the same program gives the same file.
        archive.writestr(zipfile.ZipInfo(TASK), about)
        archive.writestr(zipfile.ZipInfo(PROGRAM), bytes(program.serialize()))


def _dtype(known: LearnedWith) -> str:
    """Returns the dtype of the program's images: uint8 for pixels, or that of the task's arrays."""
    pixels = known.transform is not None or known.preparation.mean is not None
    return "uint8" if pixels else known.told["input"]["dtype"]


def _described(pool: Pool, known: LearnedWith) -> dict[str, Any]:
    """Returns the description of a program for its users, as plain JSON."""
    inside = known.preparation.evaluated_as
    return {
        "task": known.name,
        "backbone": pool.index.backbone,
        "class_names": known.class_names,
        "input": {"shape": ["batch", *known.shape], "dtype": _dtype(known)},
        "done_before": {key: one for key, one in known.told["preparation"].items() if key not in inside},
        "done_inside": inside,
        "platforms": PLATFORMS,
        "versions": {"jax": jax.__version__, "cwps_jax": __version__},
    }
