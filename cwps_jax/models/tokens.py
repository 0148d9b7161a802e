"""The parts that ViTs and Mixers share: images cut into tokens, and the MLP."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cwps_jax.errors import CwpsError


class Mlp(nn.Module):
    """Two Dense layers with a GELU between them, over the last axis, whose size is kept.

    Attributes:
        hidden: features between the layers.
        approximate_gelu: GELU by tanh, as the original Flax models have it, instead of the exact one.
        dropout: rate after each layer.
        train: whether it is training.
        dtype: compute dtype.
    """

    hidden: int
    approximate_gelu: bool = False
    dropout: float = 0.0
    train: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        drop = functools.partial(nn.Dropout(self.dropout), deterministic=not self.train)
        y = nn.Dense(self.hidden, dtype=self.dtype, name="dense1")(x)
        y = drop(nn.gelu(y, approximate=self.approximate_gelu))
        return drop(nn.Dense(x.shape[-1], dtype=self.dtype, name="dense2")(y))


def embed_patches(images: jax.Array, width: int, patch_size: int, dtype: Any) -> jax.Array:
    """Returns tokens (batch, patches, width) from images (batch, side, side, channels).

    Call it inside a compact method; the layer is `patch_embedding`.

    Raises:
        CwpsError: images that are not square, or whose side is not a multiple of the patch's.
    """
    _, height, side, _ = images.shape
    if height != side:
        raise CwpsError(f"images are {height} x {side} px, must be square: resize or crop them")
    if side % patch_size:
        raise CwpsError(
            f"images are {side} x {side} px, not a multiple of patch_size = {patch_size}: resize or crop them"
        )
    conv = nn.Conv(
        width,
        (patch_size, patch_size),
        strides=patch_size,
        padding="VALID",
        dtype=dtype,
        name="patch_embedding",
    )
    x = conv(images.astype(dtype))
    return x.reshape(x.shape[0], -1, width)


def check_shape(module: nn.Module, path: str, shape: tuple[int, ...]) -> None:
    """Raises CwpsError if the module has parameters already, and the one at `path` is not of `shape`."""
    leaf: Any = module.variables.get("params", {})
    for name in path.split("/"):
        if name not in leaf:
            return
        leaf = leaf[name]
    if leaf.shape != shape:
        where = "/".join((*module.path, path))
        raise CwpsError(
            f"{where} has shape {leaf.shape}, these images need {shape}: load or make the variables for "
            "their image_size"
        )
