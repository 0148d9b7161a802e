"""Stochastic depth (Huang et al. 2016): residual branches that some images skip in training."""

import flax.linen as nn
import jax


def drop_branch(y: jax.Array, rate: float, train: bool) -> jax.Array:
    """Returns a residual branch (batch, ...) with whole images zeroed at `rate`, the others scaled up.

    Call it inside a compact method; in training, at a rate above 0, it draws from the "dropout" key.
    """
    return nn.Dropout(rate, broadcast_dims=tuple(range(1, y.ndim)), deterministic=not train)(y)


def drop_rate(rate: float, block: int, blocks: int) -> float:
    """Returns the rate of a block: it grows linearly from 0 at the first to `rate` at the last."""
    return rate * block / max(blocks - 1, 1)
