"""Losses and metrics of classification. Yours may be any function of the same form."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cwps_jax.errors import CwpsError

# (outputs, batch) -> one value per item, (batch,). A metric is better when it is larger.
Objective = Callable[[jax.Array, Mapping[str, jax.Array]], jax.Array]


@dataclasses.dataclass(frozen=True)
class WholeSplit:
    """A metric over a whole split that is not a mean over items; see `whole_split`.

    Attributes:
        function: from (outputs, fields) of all items, in NumPy, to one number.
    """

    function: Callable[[Any, Mapping[str, np.ndarray]], float]

    def per_item(self, outputs: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Returns its values during training, which are not numbers: nan, (batch,)."""
        return jnp.full(len(jax.tree.leaves(outputs)[0]), jnp.nan)


Metric = Objective | WholeSplit


def whole_split(function: Callable[[Any, Mapping[str, np.ndarray]], float]) -> WholeSplit:
    """Marks a metric that is computed once, of all outputs of a split: F1, mean average precision, mean IoU.

    It runs in NumPy on the host, after training, on validation and on test data, so it may be scikit-learn's.
    It is not computed for batches, so `Progress.metric` is not a number (nan) during training.

    Args:
        function: from (outputs, fields) to one number that is better when larger. `outputs` are the model's,
            (items, ...) or a tree of such arrays, and `fields` are the split's, such as "label", (items,
            ...); all are NumPy arrays.

    Examples:
        >>> import numpy as np
        >>> recall = whole_split(lambda outputs, fields: np.mean(outputs[fields["label"] == 1, 0] > 0))
        >>> float(recall.function(np.array([[2.0], [-1.0], [3.0]]), {"label": np.array([1, 1, 0])}))
        0.5
    """
    return WholeSplit(function)


def mask_padding(logits: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the logits with those of a padded head's surplus classes at -1e9.

    A head of one size for all tasks lets them share compiled steps; `batch["classes"]`, if it is there,
    says how many classes are real.
    """
    return jnp.where(_real_classes(logits, batch), logits, -1e9) if "classes" in batch else logits


def _real_classes(logits: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns which of the head's classes are real, bool, (batch, classes)."""
    if "classes" not in batch:
        return jnp.ones(logits.shape, bool)
    return jnp.arange(logits.shape[-1]) < batch["classes"][:, None]


def cross_entropy(logits: jax.Array, batch: Mapping[str, jax.Array], smoothing: float = 0.0) -> jax.Array:
    """Returns the softmax cross-entropy with integer labels, (batch,), float32.

    Args:
        logits: (batch, classes).
        batch: with "label", integers (batch,).
        smoothing: share of each label that is spread evenly over the real classes.
    """
    padded = mask_padding(logits.astype(jnp.float32), batch)
    if not smoothing:
        return optax.softmax_cross_entropy_with_integer_labels(padded, batch["label"])
    real = _real_classes(logits, batch)
    labels = optax.smooth_labels(jax.nn.one_hot(batch["label"], logits.shape[-1]), smoothing, where=real)
    return optax.softmax_cross_entropy(padded, jnp.where(real, labels, 0))


def smoothed(loss: Objective, smoothing: float) -> Objective:
    """Returns a loss with label smoothing, or the loss itself without it.

    Raises:
        CwpsError: the loss is not `cross_entropy`.
    """
    if not smoothing:
        return loss
    if loss is not cross_entropy:
        raise CwpsError(
            f"config.label_smoothing = {smoothing}: a loss of your own has to smooth by itself; set it to 0"
        )
    return functools.partial(cross_entropy, smoothing=smoothing)


def accuracy(logits: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns 1.0 where the label has the highest logit, else 0.0, (batch,), float32.

    Args:
        logits: (batch, classes).
        batch: with "label", integers (batch,).
    """
    predicted = jnp.argmax(mask_padding(logits, batch), axis=-1)
    return (predicted == batch["label"]).astype(jnp.float32)
