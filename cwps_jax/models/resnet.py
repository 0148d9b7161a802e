"""ResNets of basic blocks (He et al. 2015), NHWC, pre-normalised images."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected where the shape changes."""

    width: int
    stride: int = 1
    norm: Any = nn.BatchNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype, padding=1)
        y = conv(self.width, (3, 3), strides=self.stride, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y))
        y = conv(self.width, (3, 3), name="conv2")(y)
        y = self.norm(name="norm2")(y)
        if x.shape != y.shape:
            x = conv(self.width, (1, 1), strides=self.stride, padding=0, name="shortcut_conv")(x)
            x = self.norm(name="shortcut_norm")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A ResNet of basic blocks.

    Attributes:
        num_classes: outputs of the head.
        stage_sizes: blocks in each stage.
        widths: channels of each stage.
        small_images: 3x3 stem without pooling, for images of about 32 px or less; else the 7x7 stem with
            stride 2 and pooling.
        dtype: compute dtype; parameters stay float32, logits are float32.
        norm_momentum: share of the old running statistics at each update.
    """

    num_classes: int
    stage_sizes: Sequence[int] = (2, 2, 2, 2)
    widths: Sequence[int] = (64, 128, 256, 512)
    small_images: bool = False
    dtype: Any = jnp.float32
    norm_momentum: float = 0.9

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits (batch, num_classes), float32, from images (batch, height, width, channels)."""
        norm = functools.partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=self.norm_momentum,
            epsilon=1e-5,
            dtype=self.dtype,
        )
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype, name="stem_conv")
        x = images.astype(self.dtype)
        if self.small_images:
            x = nn.relu(norm(name="stem_norm")(conv(self.widths[0], (3, 3), padding=1)(x)))
        else:
            x = nn.relu(norm(name="stem_norm")(conv(self.widths[0], (7, 7), strides=2, padding=3)(x)))
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, (blocks, width) in enumerate(zip(self.stage_sizes, self.widths, strict=True)):
            for block in range(blocks):
                x = BasicBlock(
                    width,
                    stride=2 if stage and not block else 1,
                    norm=norm,
                    dtype=self.dtype,
                    name=f"stage{stage + 1}_block{block + 1}",
                )(x)
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        return nn.Dense(self.num_classes, name="head")(x)


def resnet8(num_classes: int, **options: Any) -> ResNet:
    """Three stages of one block, 16 to 64 channels, for very small images."""
    defaults = dict(stage_sizes=(1, 1, 1), widths=(16, 32, 64), small_images=True)
    return ResNet(num_classes, **{**defaults, **options})


def resnet18(num_classes: int, **options: Any) -> ResNet:
    """ResNet-18."""
    return ResNet(num_classes, **{**dict(stage_sizes=(2, 2, 2, 2)), **options})


def resnet34(num_classes: int, **options: Any) -> ResNet:
    """ResNet-34."""
    return ResNet(num_classes, **{**dict(stage_sizes=(3, 4, 6, 3)), **options})
