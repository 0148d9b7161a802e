"""Heads: one size for all tasks of a trainer, cut to each task's own, or begun from the pre-trained one."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np

from cwps_jax.core.trees import Tree, flatten, map_with_path
from cwps_jax.errors import CwpsError
from cwps_jax.tracing import trace_parameters


def cut_to_model(params: Tree, model: nn.Module, example: jax.ShapeDtypeStruct) -> dict[str, Any]:
    """Returns the parameters cut to a model's own shapes: the leading outputs of a larger head.

    Args:
        params: nested dict of parameters.
        model: the model that they are for.
        example: shape of its input.
    """
    wanted = flatten(trace_parameters(model, example)[0])
    return map_with_path(
        lambda path, leaf: np.asarray(leaf)[tuple(slice(size) for size in wanted[path].shape)], params
    )


def with_kept_head(
    new: Tree, pretrained: Tree, model: nn.Module, example: jax.ShapeDtypeStruct
) -> dict[str, Any]:
    """Returns a new head whose leading outputs are the pre-trained head's: a task of the very same classes.

    Args:
        new: nested dict, a head in the trainer's size.
        pretrained: nested dict, the pre-trained model's parameters.
        model: the task's own model.
        example: shape of its input.

    Raises:
        CwpsError: the pre-trained model has no such head, or one of another size than the task's.
    """
    wanted, stored = flatten(trace_parameters(model, example)[0]), flatten(pretrained)

    def keep(path: str, leaf: Any) -> np.ndarray:
        shape = stored[path].shape if path in stored else None
        if shape != wanted[path].shape:
            raise CwpsError(
                f"config.keep_head: the pre-trained model's {path} is {shape or 'missing'}, the task's "
                f"{wanted[path].shape}; set it to false for tasks of other classes"
            )
        kept = np.array(leaf)
        kept[tuple(slice(size) for size in wanted[path].shape)] = stored[path]
        return kept

    return map_with_path(keep, new)
