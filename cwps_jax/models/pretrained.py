"""Weights of a backbone, from and to safetensors files.

The keys are the paths of our own trees: "params/stem_conv/kernel", "batch_stats/stem_norm/mean".
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.errors import CwpsError


def load_weights(
    path: str | pathlib.Path, make_model: Callable[[int], nn.Module], example: Any, head: str = "head"
) -> tuple[nn.Module, dict[str, Any]]:
    """Returns a model with the variables of a file, every leaf of it filled and every key used.

    Args:
        path: a safetensors file.
        make_model: from a number of classes to the model; the file's head says how many there are.
        example: an example image batch, array or `jax.ShapeDtypeStruct`.
        head: name of the model's head.

    Raises:
        CwpsError: the file cannot be read, or has missing, surplus or misshapen keys (all are listed), or
            a value that is not finite.
    """
    arrays = _read(pathlib.Path(path))
    kernel = arrays.get(f"params/{head}/kernel")
    if kernel is None:
        raise CwpsError(f"{path}: missing key params/{head}/kernel, which says how many classes there are")
    model = make_model(kernel.shape[-1])
    wanted = flatten(jax.eval_shape(model.init, jax.random.key(0), example))
    problems = _differences(arrays, wanted)
    if problems:
        raise CwpsError(f"{path}: does not fit this backbone: {'; '.join(problems)}")
    for key, array in arrays.items():
        if not np.isfinite(array).all():
            raise CwpsError(f"{path}: {key} has values that are not finite")
    return model, unflatten({key: array.astype(wanted[key].dtype) for key, array in arrays.items()})


def save_weights(path: str | pathlib.Path, variables: Mapping[str, Any]) -> None:
    """Writes a model's variables to a safetensors file that `load_weights` reads."""
    from safetensors.numpy import save_file

    arrays = {key: np.ascontiguousarray(leaf) for key, leaf in flatten(variables).items()}
    save_file(arrays, pathlib.Path(path))


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(path)
    except FileNotFoundError as error:
        raise CwpsError(f"{path}: no such weights file") from error
    except (SafetensorError, OSError) as error:
        raise CwpsError(f"{path}: not a readable safetensors file ({error})") from error
    for key, array in arrays.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise CwpsError(f"{path}: {key} is {array.dtype}, must be a floating-point type")
    return arrays


def _differences(arrays: Mapping[str, np.ndarray], wanted: Mapping[str, Any]) -> list[str]:
    missing = sorted(set(wanted) - set(arrays))
    surplus = sorted(set(arrays) - set(wanted))
    misshapen = [
        f"{key} {arrays[key].shape} instead of {wanted[key].shape}"
        for key in sorted(set(arrays) & set(wanted))
        if arrays[key].shape != wanted[key].shape
    ]
    named = (("missing", missing), ("surplus", surplus), ("misshapen", misshapen))
    return [f"{what} keys: {', '.join(keys)}" for what, keys in named if keys]
