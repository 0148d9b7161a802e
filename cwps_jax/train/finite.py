"""Values that are not finite, and their cause: an item of a batch, or a trained leaf."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cwps_jax.core.trees import Tree, flatten
from cwps_jax.data.arrays_check import not_finite
from cwps_jax.data.pipeline import rows_of_step
from cwps_jax.data.split import Split
from cwps_jax.settings import TrainConfig


def why(split: Split, config: TrainConfig, step: int) -> str:
    """Returns the cause of a loss that is not finite: an item of its batch, or else the learning rate."""
    rows = rows_of_step(split, config.batch_size, config.seed, step)
    for name, values in split.read(rows, None).items():
        found = not_finite(values)
        if found:
            return (
                f": the {name!r} of training item {rows[found[0]]} has a value that is {found[1]}; repair it"
            )
    rate = "the rate of config.optimizer" if config.optimizer_given else "config.learning_rate"
    return f"; its images and labels are finite: lower {rate}"


def check_finite(trees: Tree) -> None:
    """Raises FloatingPointError for the first leaf with a value that is not finite."""
    for path, leaf in flatten(trees).items():
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not np.isfinite(leaf).all():
            raise FloatingPointError(
                f"{path} is not finite after training, though the loss is: nothing of it can be stored; look "
                "for images with huge values, or lower the learning rate"
            )


def check_outputs(outputs: Any, split: str) -> None:
    """Raises FloatingPointError if the model that is to be stored gives an output that is not a number.

    Infinite outputs are let through: a model may rule a class out by one.

    Args:
        outputs: (items, ...), or a tree of such.
        split: name of the split that has the items.
    """
    for leaf in map(np.asarray, jax.tree.leaves(outputs)):
        wrong = np.isnan(leaf).any(axis=tuple(range(1, leaf.ndim)))
        if wrong.any():
            raise FloatingPointError(
                f"the model's output is not a number for {wrong.sum()} of {len(wrong)} {split} items, first "
                f"for item {wrong.argmax()}, though the loss of training is finite: nothing is stored; look "
                "at this item, or store the task in more bits (config.row_bits)"
            )
