"""Losses and metrics of classification. Yours may be any function of the same form."""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from cwps_jax.errors import CwpsError

# (outputs, batch) -> one value per item, (batch,). A metric is better when it is larger.
Objective = Callable[[jax.Array, Mapping[str, jax.Array]], jax.Array]


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
    """Returns a loss with label smoothing; the loss itself where there is none.

    Raises:
        CwpsError: smoothing of another loss than `cross_entropy`.
    """
    if not smoothing:
        return loss
    if loss is not cross_entropy:
        raise CwpsError(
            f"config.label_smoothing = {smoothing}: a loss of your own has to smooth by itself; set it to 0"
        )
    return functools.partial(cross_entropy, smoothing=smoothing)


def accuracy(logits: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns 1.0 where the label has the highest logit, else 0.0, (batch,)."""
    predicted = jnp.argmax(mask_padding(logits, batch), axis=-1)
    return (predicted == batch["label"]).astype(jnp.float32)
