"""EfficientNets (Tan and Le 2019), with symmetric padding as in torchvision and timm's `efficientnet_b0`."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cwps_jax.models.backbone import Backbone
from cwps_jax.models.conversion import CONV, DENSE, NORM, Entry, Table
from cwps_jax.models.norm import batch_norm
from cwps_jax.models.stochastic_depth import drop_branch, drop_rate


class Stage(NamedTuple):
    """Blocks of one shape.

    Attributes:
        expansion: channels inside a block, in multiples of its input's; 1 leaves the expansion out.
        kernel_size: side of the depthwise kernels.
        stride: of the first block's depthwise convolution.
        width: channels of the blocks' outputs.
        blocks: how many.
    """

    expansion: int
    kernel_size: int
    stride: int
    width: int
    blocks: int


class MBConv(nn.Module):
    """An inverted bottleneck: expansion, depthwise convolution, squeeze and excitation, projection.

    Attributes:
        shape: kernel, expansion, stride and width.
        norm: makes a norm from its name.
        drop_rate: share of images that skip the branch in training, where there is a shortcut.
        train: whether it is training.
        dtype: compute dtype.
    """

    shape: Stage
    norm: Any = nn.BatchNorm
    drop_rate: float = 0.0
    train: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = functools.partial(nn.Conv, dtype=self.dtype)
        inputs, side = x.shape[-1], self.shape.kernel_size
        expanded = self.shape.expansion * inputs
        y = x
        if self.shape.expansion != 1:
            y = conv(expanded, (1, 1), use_bias=False, name="expand_conv")(y)
            y = nn.silu(self.norm(name="expand_norm")(y))
        y = conv(
            expanded,
            (side, side),
            strides=self.shape.stride,
            padding=(side - 1) // 2,
            feature_group_count=expanded,
            use_bias=False,
            name="depthwise_conv",
        )(y)
        y = nn.silu(self.norm(name="depthwise_norm")(y))
        z = jnp.mean(y, axis=(1, 2), keepdims=True, dtype=jnp.float32)
        z = nn.silu(conv(max(1, inputs // 4), (1, 1), name="squeeze_conv")(z))
        y = y * nn.sigmoid(conv(expanded, (1, 1), name="excite_conv")(z))
        y = conv(self.shape.width, (1, 1), use_bias=False, name="project_conv")(y)
        y = self.norm(name="project_norm")(y)
        if self.shape.stride != 1 or self.shape.width != inputs:
            return y
        return x + drop_branch(y, self.drop_rate, self.train)


class EfficientNet(nn.Module):
    """An EfficientNet.

    Attributes:
        num_classes: outputs of the head.
        stages: shapes of the stages.
        stem_width: channels of the stem.
        last_width: channels before the head.
        dtype: compute dtype; parameters stay float32, logits are float32.
        norm_momentum: share of the old running statistics at each update.
        stochastic_depth: share of images for which the last block's branch is dropped in training; it grows
            linearly from the first block on.
        dropout: share of the head's inputs that are dropped in training.
        remat: recompute each block's activations in the backward pass: less memory, more time.
    """

    num_classes: int
    stages: Sequence[Stage]
    stem_width: int = 32
    last_width: int = 1280
    dtype: Any = jnp.float32
    norm_momentum: float = 0.9
    stochastic_depth: float = 0.0
    dropout: float = 0.0
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits (batch, num_classes), float32, from images (batch, height, width, channels)."""
        norm = batch_norm(train, self.norm_momentum, self.dtype)
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        block_class: Any = nn.remat(MBConv) if self.remat else MBConv
        x = conv(self.stem_width, (3, 3), strides=2, padding=1, name="stem_conv")(images.astype(self.dtype))
        x = nn.silu(norm(name="stem_norm")(x))
        depth, blocks = 0, sum(stage.blocks for stage in self.stages)
        for number, stage in enumerate(self.stages):
            for block in range(stage.blocks):
                x = block_class(
                    stage._replace(stride=1) if block else stage,
                    norm=norm,
                    drop_rate=drop_rate(self.stochastic_depth, depth, blocks),
                    train=train,
                    dtype=self.dtype,
                    name=f"stage{number}_block{block}",
                )(x)
                depth += 1
        x = nn.silu(norm(name="last_norm")(conv(self.last_width, (1, 1), name="last_conv")(x)))
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="head")(x)


B0_STAGES = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1),
)


def _torchvision_stage(stage: int) -> tuple[Entry, ...]:
    """Returns the entries of a stage: torchvision counts the stem, and only the parts that a block has."""
    ours, theirs = f"stage{stage}_block{{}}", f"features.{stage + 1}.{{}}.block"
    first = 1 if stage else 0  # the first stage does not expand
    entries = (
        Entry(f"{ours}/depthwise_conv", f"{theirs}.{first}.0", CONV),
        Entry(f"{ours}/depthwise_norm", f"{theirs}.{first}.1", NORM),
        Entry(f"{ours}/squeeze_conv", f"{theirs}.{first + 1}.fc1", CONV),
        Entry(f"{ours}/excite_conv", f"{theirs}.{first + 1}.fc2", CONV),
        Entry(f"{ours}/project_conv", f"{theirs}.{first + 2}.0", CONV),
        Entry(f"{ours}/project_norm", f"{theirs}.{first + 2}.1", NORM),
    )
    expand = (
        Entry(f"{ours}/expand_conv", f"{theirs}.0.0", CONV),
        Entry(f"{ours}/expand_norm", f"{theirs}.0.1", NORM),
    )
    return expand + entries if stage else entries


TORCHVISION = Table(
    "torchvision",
    (
        Entry("stem_conv", "features.0.0", CONV),
        Entry("stem_norm", "features.0.1", NORM),
        *(entry for stage in range(len(B0_STAGES)) for entry in _torchvision_stage(stage)),
        Entry("last_conv", "features.8.0", CONV),
        Entry("last_norm", "features.8.1", NORM),
        Entry("head", "classifier.1", DENSE),
    ),
)

TIMM = Table(
    "timm",
    (
        Entry("stem_conv", "conv_stem", CONV),
        Entry("stem_norm", "bn1", NORM),
        # The first stage does not expand.
        Entry("stage0_block{}/depthwise_norm", "blocks.0.{}.bn1", NORM),
        Entry("stage0_block{}/project_conv", "blocks.0.{}.conv_pw", CONV),
        Entry("stage0_block{}/project_norm", "blocks.0.{}.bn2", NORM),
        Entry("stage{}_block{}/expand_conv", "blocks.{}.{}.conv_pw", CONV),
        Entry("stage{}_block{}/expand_norm", "blocks.{}.{}.bn1", NORM),
        Entry("stage{}_block{}/depthwise_conv", "blocks.{}.{}.conv_dw", CONV),
        Entry("stage{}_block{}/depthwise_norm", "blocks.{}.{}.bn2", NORM),
        Entry("stage{}_block{}/squeeze_conv", "blocks.{}.{}.se.conv_reduce", CONV),
        Entry("stage{}_block{}/excite_conv", "blocks.{}.{}.se.conv_expand", CONV),
        Entry("stage{}_block{}/project_conv", "blocks.{}.{}.conv_pwl", CONV),
        Entry("stage{}_block{}/project_norm", "blocks.{}.{}.bn3", NORM),
        Entry("last_conv", "conv_head", CONV),
        Entry("last_norm", "bn2", NORM),
        Entry("head", "classifier", DENSE),
    ),
)

BACKBONES = {
    "efficientnet_b0": Backbone(
        EfficientNet,
        {"stages": B0_STAGES, "stem_width": 32, "last_width": 1280},
        5_288_548,
        (TORCHVISION, TIMM),
    ),
}
