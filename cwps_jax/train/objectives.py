"""Losses and metrics of classification. Yours may be any function of the same form."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

# (outputs, batch) -> one value per item, (batch,). A metric is better when it is larger.
Objective = Callable[[jax.Array, Mapping[str, jax.Array]], jax.Array]


def mask_padding(logits: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the logits with those of a padded head's surplus classes at -1e9.

    A head of one size for all tasks lets them share compiled steps; `batch["classes"]`, if it is there,
    says how many classes are real.
    """
    if "classes" not in batch:
        return logits
    real = jnp.arange(logits.shape[-1]) < batch["classes"][:, None]
    return jnp.where(real, logits, -1e9)


def cross_entropy(logits: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the softmax cross-entropy with integer labels, (batch,), float32.

    Args:
        logits: (batch, classes).
        batch: with "label", integers (batch,).
    """
    logits = mask_padding(logits.astype(jnp.float32), batch)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def accuracy(logits: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns 1.0 where the label has the highest logit, else 0.0, (batch,)."""
    predicted = jnp.argmax(mask_padding(logits, batch), axis=-1)
    return (predicted == batch["label"]).astype(jnp.float32)
