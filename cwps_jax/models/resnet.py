"""ResNets (He et al. 2015): of basic blocks, of bottlenecks (v1.5), and those for CIFAR (section 4.2)."""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from cwps_jax.models.backbone import Backbone
from cwps_jax.models.conversion import CONV, DENSE, NORM, Entry, Table
from cwps_jax.models.norm import batch_norm
from cwps_jax.models.stochastic_depth import drop_branch, drop_rate


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    Attributes:
        width: channels of the output.
        stride: of the first convolution.
        shortcut: "projection" by a 1x1 convolution where the shape changes, or "padding": every second pixel,
            and zeros for the new channels (option A).
        norm: makes a norm from its name.
        drop_rate: share of images that skip the branch in training.
        train: whether it is training.
        dtype: compute dtype.
    """

    width: int
    stride: int = 1
    shortcut: Literal["projection", "padding"] = "projection"
    norm: Any = nn.BatchNorm
    drop_rate: float = 0.0
    train: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype, padding=1)
        y = conv(self.width, (3, 3), strides=self.stride, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y))
        y = conv(self.width, (3, 3), name="conv2")(y)
        y = self.norm(name="norm2")(y)
        if self.shortcut == "padding" and x.shape != y.shape:
            x = x[:, :: self.stride, :: self.stride]
            new = y.shape[-1] - x.shape[-1]
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (new // 2, new - new // 2)))
        return nn.relu(_shortcut(self, x, y.shape) + drop_branch(y, self.drop_rate, self.train))


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution beside a shortcut; the stride is the 3x3's (v1.5).

    Attributes: as those of `BasicBlock`; the output has four times the width.
    """

    width: int
    stride: int = 1
    norm: Any = nn.BatchNorm
    drop_rate: float = 0.0
    train: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        y = nn.relu(self.norm(name="norm1")(conv(self.width, (1, 1), name="conv1")(x)))
        y = conv(self.width, (3, 3), strides=self.stride, padding=1, name="conv2")(y)
        y = nn.relu(self.norm(name="norm2")(y))
        y = self.norm(name="norm3")(conv(4 * self.width, (1, 1), name="conv3")(y))
        return nn.relu(_shortcut(self, x, y.shape) + drop_branch(y, self.drop_rate, self.train))


def _shortcut(block: BasicBlock | Bottleneck, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    if x.shape == shape:
        return x
    conv = nn.Conv(
        shape[-1], (1, 1), strides=block.stride, use_bias=False, dtype=block.dtype, name="shortcut_conv"
    )
    return block.norm(name="shortcut_norm")(conv(x))


class ResNet(nn.Module):
    """A ResNet.

    Attributes:
        num_classes: outputs of the head.
        stage_sizes: blocks in each stage.
        widths: channels of each stage; a bottleneck's output has four times as many.
        block: "basic" or "bottleneck".
        shortcut: of basic blocks, see there.
        small_images: 3x3 stem without pooling, for images of about 32 px or less; else the 7x7 stem with
            stride 2 and pooling.
        dtype: compute dtype; parameters stay float32, logits are float32.
        norm_momentum: share of the old running statistics at each update.
        stochastic_depth: share of images for which the last block's branch is dropped in training; it grows
            linearly from the first block on.
        remat: recompute each block's activations in the backward pass: less memory, more time.
    """

    num_classes: int
    stage_sizes: Sequence[int] = (2, 2, 2, 2)
    widths: Sequence[int] = (64, 128, 256, 512)
    block: Literal["basic", "bottleneck"] = "basic"
    shortcut: Literal["projection", "padding"] = "projection"
    small_images: bool = False
    dtype: Any = jnp.float32
    norm_momentum: float = 0.9
    stochastic_depth: float = 0.0
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits (batch, num_classes), float32, from images (batch, height, width, channels)."""
        norm = batch_norm(train, self.norm_momentum, self.dtype)
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype, name="stem_conv")
        x = images.astype(self.dtype)
        if self.small_images:
            x = nn.relu(norm(name="stem_norm")(conv(self.widths[0], (3, 3), padding=1)(x)))
        else:
            x = nn.relu(norm(name="stem_norm")(conv(self.widths[0], (7, 7), strides=2, padding=3)(x)))
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        block_class: Any = Bottleneck if self.block == "bottleneck" else BasicBlock
        settings = {} if self.block == "bottleneck" else {"shortcut": self.shortcut}
        if self.remat:
            block_class = nn.remat(block_class)
        depth, blocks = 0, sum(self.stage_sizes)
        for stage, (size, width) in enumerate(zip(self.stage_sizes, self.widths, strict=True)):
            for block in range(size):
                x = block_class(
                    width,
                    stride=2 if stage and not block else 1,
                    norm=norm,
                    drop_rate=drop_rate(self.stochastic_depth, depth, blocks),
                    train=train,
                    dtype=self.dtype,
                    name=f"stage{stage + 1}_block{block}",
                    **settings,
                )(x)
                depth += 1
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        return nn.Dense(self.num_classes, name="head")(x)


# torchvision and timm share their names; so do the CIFAR ResNets of He et al.'s section 4.2.
TORCHVISION = Table(
    "torchvision",
    (
        Entry("stem_conv", "conv1", CONV),
        Entry("stem_norm", "bn1", NORM),
        Entry("stage{}_block{}/conv{}", "layer{}.{}.conv{}", CONV),
        Entry("stage{}_block{}/norm{}", "layer{}.{}.bn{}", NORM),
        Entry("stage{}_block{}/shortcut_conv", "layer{}.{}.downsample.0", CONV),
        Entry("stage{}_block{}/shortcut_norm", "layer{}.{}.downsample.1", NORM),
        Entry("head", "fc", DENSE),
    ),
)


def _imagenet(stage_sizes: Sequence[int], parameters: int, block: str = "basic") -> Backbone:
    settings = {
        "stage_sizes": tuple(stage_sizes),
        "widths": (64, 128, 256, 512),
        "block": block,
        "shortcut": "projection",
        "small_images": False,
    }
    return Backbone(ResNet, settings, parameters, (TORCHVISION,))


def _cifar(blocks: int, parameters: int) -> Backbone:
    settings = {
        "stage_sizes": (blocks, blocks, blocks),
        "widths": (16, 32, 64),
        "block": "basic",
        "shortcut": "padding",
        "small_images": True,
    }
    return Backbone(ResNet, settings, parameters, (TORCHVISION,), image_size=32, num_classes=10)


BACKBONES = {
    "resnet18": _imagenet((2, 2, 2, 2), 11_689_512),
    "resnet34": _imagenet((3, 4, 6, 3), 21_797_672),
    "resnet50": _imagenet((3, 4, 6, 3), 25_557_032, "bottleneck"),
    "resnet101": _imagenet((3, 4, 23, 3), 44_549_160, "bottleneck"),
    "resnet20_cifar": _cifar(3, 269_722),
    "resnet32_cifar": _cifar(5, 464_154),
    "resnet44_cifar": _cifar(7, 658_586),
    "resnet56_cifar": _cifar(9, 853_018),
    # Ours, for very small images: three stages of one block.
    "resnet8": Backbone(
        ResNet,
        {
            "stage_sizes": (1, 1, 1),
            "widths": (16, 32, 64),
            "block": "basic",
            "shortcut": "projection",
            "small_images": True,
        },
        78_042,
        (TORCHVISION,),
        image_size=12,
        num_classes=10,
    ),
}
