"""DenseNets (Huang et al. 2016), with bottlenecks and compression (DenseNet-BC)."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cwps_jax.errors import CwpsError
from cwps_jax.models.backbone import Backbone
from cwps_jax.models.conversion import CONV, DENSE, NORM, Entry, Table
from cwps_jax.models.norm import batch_norm


class DenseLayer(nn.Module):
    """A 1x1 and a 3x3 convolution, each of normalised features, over all features of the block so far.

    Attributes:
        growth: channels that it adds.
        norm: makes a norm from its name.
        dtype: compute dtype.
    """

    growth: int
    norm: Any = nn.BatchNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, *features: jax.Array) -> jax.Array:
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        # Joined in here, so that remat keeps each feature once and not once for every later layer.
        x = jnp.concatenate(features, axis=-1)
        x = conv(4 * self.growth, (1, 1), name="conv1")(nn.relu(self.norm(name="norm1")(x)))
        return conv(self.growth, (3, 3), padding=1, name="conv2")(nn.relu(self.norm(name="norm2")(x)))


class DenseNet(nn.Module):
    """A DenseNet. The images' sides must be at least 29 px with four blocks.

    Attributes:
        num_classes: outputs of the head.
        block_sizes: layers in each block; between blocks, channels and sides are halved.
        growth: channels that a layer adds.
        stem_width: channels of the stem.
        dtype: compute dtype; parameters stay float32, logits are float32.
        norm_momentum: share of the old running statistics at each update.
        remat: compute each layer's activations again in the backward pass: far less memory, more time.
    """

    num_classes: int
    block_sizes: Sequence[int] = (6, 12, 24, 16)
    growth: int = 32
    stem_width: int = 64
    dtype: Any = jnp.float32
    norm_momentum: float = 0.9
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits (batch, num_classes), float32, from images (batch, height, width, channels).

        Raises:
            CwpsError: images so small that nothing is left of them after the last pooling.
        """
        norm = batch_norm(train, self.norm_momentum, self.dtype)
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype)
        layer_class: Any = nn.remat(DenseLayer) if self.remat else DenseLayer
        x = images.astype(self.dtype)
        x = conv(self.stem_width, (7, 7), strides=2, padding=3, name="stem_conv")(x)
        x = nn.relu(norm(name="stem_norm")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for block, size in enumerate(self.block_sizes, start=1):
            features = [x]
            for layer in range(1, size + 1):
                new = layer_class(self.growth, norm, self.dtype, name=f"block{block}_layer{layer}")
                features.append(new(*features))
            x = jnp.concatenate(features, axis=-1)
            if block < len(self.block_sizes):
                x = nn.relu(norm(name=f"transition{block}_norm")(x))
                x = conv(x.shape[-1] // 2, (1, 1), name=f"transition{block}_conv")(x)
                x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        if 0 in x.shape[1:3]:
            height, width = images.shape[1:3]
            raise CwpsError(f"images of {height} x {width} px are too small for this DenseNet; enlarge them")
        x = nn.relu(norm(name="final_norm")(x))
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        return nn.Dense(self.num_classes, name="head")(x)


def _table(name: str, conv: str, norm: str, counted: bool) -> Table:
    """Returns a table; `conv` and `norm` are how the layers' modules are called in it."""
    return Table(
        name,
        (
            Entry("stem_conv", "features.conv0", CONV),
            Entry("stem_norm", "features.norm0", NORM),
            Entry("block{}_layer{}/conv{}", f"features.denseblock{{}}.denselayer{{}}.{conv}", CONV),
            Entry("block{}_layer{}/norm{}", f"features.denseblock{{}}.denselayer{{}}.{norm}", NORM),
            Entry("transition{}_conv", "features.transition{}.conv", CONV),
            Entry("transition{}_norm", "features.transition{}.norm", NORM),
            Entry("final_norm", "features.norm5", NORM),
            Entry("head", "classifier", DENSE),
        ),
        counted=counted,
    )


# timm's names are torchvision's. The files that torchvision publishes have older ones; it renames them.
TABLES = (
    _table("torchvision", "conv{}", "norm{}", counted=True),
    _table("original", "conv.{}", "norm.{}", counted=False),
)

BACKBONES = {
    "densenet121": Backbone(
        DenseNet, {"block_sizes": (6, 12, 24, 16), "growth": 32, "stem_width": 64}, 7_978_856, TABLES
    ),
}
