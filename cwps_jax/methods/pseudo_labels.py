"""Learning without labels: the network is trained on its own answers where their probability is high."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from cwps_jax.methods.method import Loss


@dataclasses.dataclass(frozen=True)
class PseudoLabels:
    """A loss whose labels are the network's own answers, over the images with a high probability.

    Attributes:
        confidence: the least probability of an answer that counts.
    """

    confidence: float

    def __call__(self, loss: Loss) -> Loss:
        def of_answers(logits: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
            real = jnp.arange(logits.shape[-1]) < batch.get("classes", jnp.array([logits.shape[-1]]))[:, None]
            chances = jax.nn.softmax(jax.lax.stop_gradient(jnp.where(real, logits, -jnp.inf)))
            sure = (chances.max(axis=-1) > self.confidence).astype(jnp.float32)
            values = loss(logits, {**batch, "label": jnp.argmax(chances, axis=-1)})
            return sure * values * len(logits) / jnp.maximum(sure.sum(), 1)  # its mean is over what is sure

        return of_answers
