"""MLP-Mixers (Tolstikhin et al. 2021): MLPs over the tokens and over their features, in turn."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cwps_jax.models.backbone import Backbone
from cwps_jax.models.conversion import CONV, DENSE, FLAX, NORM, Entry, Table
from cwps_jax.models.stochastic_depth import drop_branch, drop_rate
from cwps_jax.models.tokens import Mlp, check_shape, embed_patches


class MixerBlock(nn.Module):
    """An MLP across the tokens and one across their features, each behind a norm and beside a shortcut.

    Attributes:
        approximate_gelu, dropout: see `Mixer`.
        drop_rate: share of images that skip each branch in training.
        train: whether it is training.
        dtype: compute dtype.
    """

    approximate_gelu: bool = False
    dropout: float = 0.0
    drop_rate: float = 0.0
    train: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = functools.partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype)
        mlp = functools.partial(
            Mlp,
            approximate_gelu=self.approximate_gelu,
            dropout=self.dropout,
            train=self.train,
            dtype=self.dtype,
        )
        tokens, width = x.shape[1:]
        check_shape(self, "token_mixing/dense1/kernel", (tokens, width // 2))
        y = jnp.swapaxes(norm(name="norm1")(x), 1, 2)
        y = jnp.swapaxes(mlp(width // 2, name="token_mixing")(y), 1, 2)
        x = x + drop_branch(y, self.drop_rate, self.train)
        y = mlp(4 * width, name="channel_mixing")(norm(name="norm2")(x))
        return x + drop_branch(y, self.drop_rate, self.train)


class Mixer(nn.Module):
    """An MLP-Mixer. Its variables are for one image size and cannot be resized.

    Attributes:
        num_classes: outputs of the head, which reads the mean of the tokens.
        width: features of a token; the MLP across tokens has half as many hidden ones, the other four times.
        depth: number of blocks.
        patch_size: side of a patch, in pixels.
        approximate_gelu: GELU by tanh, with which the original Flax models were trained; timm has the exact
            one.
        dropout: rate after each layer of the MLPs.
        dtype: compute dtype; parameters stay float32, logits are float32.
        stochastic_depth: share of images for which the last block's branches are dropped in training; it
            grows linearly from the first block on.
        remat: recompute each block's activations in the backward pass: less memory, more time.
    """

    num_classes: int
    width: int = 768
    depth: int = 12
    patch_size: int = 16
    approximate_gelu: bool = False
    dropout: float = 0.0
    dtype: Any = jnp.float32
    stochastic_depth: float = 0.0
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits (batch, num_classes), float32, from images (batch, side, side, channels).

        Raises:
            CwpsError: images that are not square, not a multiple of the patch, or of another size than the
                variables are for.
        """
        x = embed_patches(images, self.width, self.patch_size, self.dtype)
        block_class: Any = nn.remat(MixerBlock) if self.remat else MixerBlock
        for block in range(self.depth):
            x = block_class(
                approximate_gelu=self.approximate_gelu,
                dropout=self.dropout,
                drop_rate=drop_rate(self.stochastic_depth, block, self.depth),
                train=train,
                dtype=self.dtype,
                name=f"block{block}",
            )(x)
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x)
        return nn.Dense(self.num_classes, name="head")(jnp.mean(x, axis=1, dtype=jnp.float32))


TIMM = Table(
    "timm",
    (
        Entry("patch_embedding", "stem.proj", CONV),
        Entry("block{}/norm{}", "blocks.{}.norm{}", NORM),
        Entry("block{}/token_mixing/dense{}", "blocks.{}.mlp_tokens.fc{}", DENSE),
        Entry("block{}/channel_mixing/dense{}", "blocks.{}.mlp_channels.fc{}", DENSE),
        Entry("norm", "norm", NORM),
        Entry("head", "head", DENSE),
    ),
)

ORIGINAL = Table(
    "original",
    (
        Entry("patch_embedding", "stem", FLAX),
        Entry("block{}/norm1", "MixerBlock_{}/LayerNorm_0", FLAX),
        Entry("block{}/norm2", "MixerBlock_{}/LayerNorm_1", FLAX),
        Entry("block{}/token_mixing/dense1", "MixerBlock_{}/token_mixing/Dense_0", FLAX),
        Entry("block{}/token_mixing/dense2", "MixerBlock_{}/token_mixing/Dense_1", FLAX),
        Entry("block{}/channel_mixing/dense1", "MixerBlock_{}/channel_mixing/Dense_0", FLAX),
        Entry("block{}/channel_mixing/dense2", "MixerBlock_{}/channel_mixing/Dense_1", FLAX),
        Entry("norm", "pre_head_layer_norm", FLAX),
        Entry("head", "head", FLAX),
    ),
    suffix=".npz",
)


BACKBONES = {
    "mixer_s16": Backbone(Mixer, {"width": 512, "depth": 8}, 18_528_264, (TIMM, ORIGINAL)),
    "mixer_b16": Backbone(Mixer, {"width": 768, "depth": 12}, 59_880_472, (TIMM, ORIGINAL)),
}
