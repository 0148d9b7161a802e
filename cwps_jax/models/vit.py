"""Vision Transformers (Dosovitskiy et al. 2020): pre-norm blocks over patches and a class token."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cwps_jax.models.backbone import Backbone
from cwps_jax.models.conversion import (
    CONV,
    DENSE,
    FLAT,
    FLAX,
    HEADS,
    HEADS_KERNEL,
    NORM,
    PARAMETER,
    Entry,
    Shape,
    Table,
)
from cwps_jax.models.stochastic_depth import drop_branch, drop_rate
from cwps_jax.models.tokens import Mlp, check_shape, embed_patches


class Block(nn.Module):
    """Self-attention and an MLP, each behind a norm and beside a shortcut.

    Attributes:
        heads: of the attention.
        approximate_gelu, dropout: see `ViT`.
        drop_rate: share of images that skip each branch in training.
        train: whether it is training.
        dtype: compute dtype.
    """

    heads: int
    approximate_gelu: bool = False
    dropout: float = 0.0
    drop_rate: float = 0.0
    train: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = functools.partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype)
        attention = nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype, name="attention")
        y = attention(norm(name="norm1")(x))
        y = nn.Dropout(self.dropout, deterministic=not self.train)(y)
        x = x + drop_branch(y, self.drop_rate, self.train)
        mlp = Mlp(
            4 * x.shape[-1], self.approximate_gelu, self.dropout, self.train, dtype=self.dtype, name="mlp"
        )
        return x + drop_branch(mlp(norm(name="norm2")(x)), self.drop_rate, self.train)


class ViT(nn.Module):
    """A Vision Transformer. Its variables are for one image size, see `load_backbone`.

    Attributes:
        num_classes: outputs of the head, which reads the class token.
        width: features of a token.
        depth: number of blocks.
        heads: of each attention.
        patch_size: side of a patch, in pixels.
        approximate_gelu: GELU by tanh, with which the original Flax models were trained; timm and
            torchvision have the exact one.
        dropout: rate after the position embedding, each attention and each layer of the MLPs.
        dtype: compute dtype; parameters stay float32, logits are float32.
        stochastic_depth: share of images for which the last block's branches are dropped in training; it
            grows linearly from the first block on.
        remat: recompute each block's activations in the backward pass: less memory, more time.
    """

    num_classes: int
    width: int = 768
    depth: int = 12
    heads: int = 12
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
        batch, patches, _ = x.shape
        token = self.param("class_token", nn.initializers.zeros_init(), (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (batch, 1, self.width)).astype(self.dtype), x], axis=1)
        shape = (1, 1 + patches, self.width)
        check_shape(self, "position_embedding", shape)
        position = self.param("position_embedding", nn.initializers.normal(0.02), shape)
        x = nn.Dropout(self.dropout, deterministic=not train)(x + position.astype(self.dtype))
        block_class: Any = nn.remat(Block) if self.remat else Block
        for block in range(self.depth):
            x = block_class(
                self.heads,
                approximate_gelu=self.approximate_gelu,
                dropout=self.dropout,
                drop_rate=drop_rate(self.stochastic_depth, block, self.depth),
                train=train,
                dtype=self.dtype,
                name=f"block{block}",
            )(x)
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x[:, 0])
        return nn.Dense(self.num_classes, name="head")(x.astype(jnp.float32))


def resize_position_embedding(array: np.ndarray, shape: Shape) -> np.ndarray | None:
    """Returns a position embedding for another number of patches: its grid resampled, antialiased bicubic.

    Args:
        array: (1, 1 + side * side, width), the class token's first.
        shape: (1, 1 + new side * new side, width).

    Returns:
        float32 of that shape; None where one of them is not square, or the widths differ.
    """
    if array.ndim != 3 or (array.shape[0], array.shape[2]) != (shape[0], shape[2]):
        return None
    old, new = (math.isqrt(max(tokens - 1, 0)) for tokens in (array.shape[1], shape[1]))
    if not old or (array.shape[1], shape[1]) != (1 + old * old, 1 + new * new):
        return None
    width = shape[2]
    grid = jnp.asarray(array[:, 1:], jnp.float32).reshape(1, old, old, width)
    resized = jax.image.resize(grid, (1, new, new, width), "cubic", antialias=True)
    return np.concatenate([array[:, :1], np.asarray(resized).reshape(1, -1, width)], axis=1)


_QUERY_KEY_VALUE = tuple(f"block{{}}/attention/{name}" for name in ("query", "key", "value"))

TIMM = Table(
    "timm",
    (
        Entry("class_token", "cls_token", PARAMETER),
        Entry("position_embedding", "pos_embed", PARAMETER, resize_position_embedding),
        Entry("patch_embedding", "patch_embed.proj", CONV),
        Entry("block{}/norm{}", "blocks.{}.norm{}", NORM),
        Entry(_QUERY_KEY_VALUE, "blocks.{}.attn.qkv", HEADS),
        Entry("block{}/attention/out", "blocks.{}.attn.proj", DENSE),
        Entry("block{}/mlp/dense{}", "blocks.{}.mlp.fc{}", DENSE),
        Entry("norm", "norm", NORM),
        Entry("head", "head", DENSE),
    ),
)

_LAYER = "encoder.layers.encoder_layer_{}"
TORCHVISION = Table(
    "torchvision",
    (
        Entry("class_token", "class_token", PARAMETER),
        Entry("position_embedding", "encoder.pos_embedding", PARAMETER, resize_position_embedding),
        Entry("patch_embedding", "conv_proj", CONV),
        Entry("block{}/norm{}", f"{_LAYER}.ln_{{}}", NORM),
        Entry(
            _QUERY_KEY_VALUE,
            f"{_LAYER}.self_attention",
            {"kernel": (".in_proj_weight", HEADS_KERNEL), "bias": (".in_proj_bias", FLAT)},
        ),
        Entry("block{}/attention/out", f"{_LAYER}.self_attention.out_proj", DENSE),
        Entry("block{}/mlp/dense1", f"{_LAYER}.mlp.0", DENSE),
        Entry("block{}/mlp/dense2", f"{_LAYER}.mlp.3", DENSE),
        Entry("norm", "encoder.ln", NORM),
        Entry("head", "heads.head", DENSE),
    ),
)

_ENCODER_BLOCK = "Transformer/encoderblock_{}"
ORIGINAL = Table(
    "original",
    (
        Entry("class_token", "cls", PARAMETER),
        Entry(
            "position_embedding",
            "Transformer/posembed_input/pos_embedding",
            PARAMETER,
            resize_position_embedding,
        ),
        Entry("patch_embedding", "embedding", FLAX),
        Entry("block{}/norm1", f"{_ENCODER_BLOCK}/LayerNorm_0", FLAX),
        Entry("block{}/norm2", f"{_ENCODER_BLOCK}/LayerNorm_2", FLAX),
        *(
            Entry(
                f"block{{}}/attention/{name}", f"{_ENCODER_BLOCK}/MultiHeadDotProductAttention_1/{name}", FLAX
            )
            for name in ("query", "key", "value", "out")
        ),
        Entry("block{}/mlp/dense1", f"{_ENCODER_BLOCK}/MlpBlock_3/Dense_0", FLAX),
        Entry("block{}/mlp/dense2", f"{_ENCODER_BLOCK}/MlpBlock_3/Dense_1", FLAX),
        Entry("norm", "Transformer/encoder_norm", FLAX),
        Entry("head", "head", FLAX),
    ),
    suffix=".npz",
)


def _imagenet(width: int, heads: int, parameters: int) -> Backbone:
    return Backbone(
        ViT, {"width": width, "depth": 12, "heads": heads}, parameters, (TIMM, TORCHVISION, ORIGINAL)
    )


BACKBONES = {
    "vit_ti16": _imagenet(192, 3, 5_717_416),
    "vit_s16": _imagenet(384, 6, 22_050_664),
    "vit_b16": _imagenet(768, 12, 86_567_656),
    # Ours, for very small images: nine patches.
    "vit_nano4": Backbone(
        ViT,
        {"width": 64, "depth": 3, "heads": 4, "patch_size": 4},
        154_570,
        (TIMM,),
        image_size=12,
        num_classes=10,
    ),
}
