"""Heads: one size for all tasks of a trainer, cut to each task's size; and heads that start pre-trained."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np

from cwps_jax.core.trees import Flat, Tree, flatten, map_with_path
from cwps_jax.errors import CwpsError
from cwps_jax.tracing import mode


def cut_to_model(variables: Tree, model: nn.Module, example: Any) -> dict[str, Any]:
    """Returns variables cut to a model's own shapes, with the first outputs of a larger head.

    Args:
        variables: {collection: tree}; the statistics of a norm in the head are as large as the head.
        model: the model for which they are.
        example: shape of its input.
    """
    wanted = _shapes(model, example)

    def cut(path: str, leaf: Any) -> np.ndarray:
        kept = np.asarray(leaf)
        return kept[tuple(slice(size) for size in wanted[path].shape)] if path in wanted else kept

    return map_with_path(cut, variables)


def with_kept_head(new: Tree, pretrained: Tree, model: nn.Module, example: Any) -> dict[str, Any]:
    """Returns a new head whose first outputs are the pre-trained head's, for a task of the same classes.

    Args:
        new: {collection: tree}, a head in the trainer's size.
        pretrained: the pre-trained model's variables.
        model: the task's own model.
        example: shape of its input.

    Raises:
        CwpsError: the pre-trained model has no such head, or its head has another size than the task's.
    """
    wanted, stored = _shapes(model, example), flatten(pretrained)

    def keep(path: str, leaf: Any) -> np.ndarray:
        shape = stored[path].shape if path in stored else None
        if shape != wanted[path].shape:
            raise CwpsError(
                f"config.keep_head: the pre-trained model's {path.partition('/')[2]} is "
                f"{shape or 'missing'}, the task's {wanted[path].shape}; set it to false for tasks of other "
                "classes"
            )
        kept = np.array(leaf)
        kept[tuple(slice(size) for size in wanted[path].shape)] = stored[path]
        return kept

    return map_with_path(keep, new)


def _shapes(model: nn.Module, example: Any) -> Flat:
    """Returns {path: shape} of a model's variables, below their collections."""
    init = lambda inputs: model.init(jax.random.key(0), inputs, **mode(model, train=False))
    return flatten(nn.meta.unbox(jax.eval_shape(init, example)))
