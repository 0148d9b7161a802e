"""SqueezeNet 1.1 (Iandola et al. 2016): no norms, biases everywhere, a convolution as the head."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cwps_jax.errors import CwpsError
from cwps_jax.models.backbone import Backbone
from cwps_jax.models.conversion import CONV, Entry, Table


class Fire(nn.Module):
    """A 1x1 convolution, then a 1x1 and a 3x3 convolution side by side, of four times its width each.

    Attributes:
        width: channels of the first convolution.
        dtype: compute dtype.
    """

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = functools.partial(nn.Conv, kernel_init=nn.initializers.he_uniform(), dtype=self.dtype)
        x = nn.relu(conv(self.width, (1, 1), name="squeeze")(x))
        pixel = conv(4 * self.width, (1, 1), name="expand1x1")(x)
        around = conv(4 * self.width, (3, 3), padding=1, name="expand3x3")(x)
        return nn.relu(jnp.concatenate([pixel, around], axis=-1))


class SqueezeNet(nn.Module):
    """A SqueezeNet 1.1. The images' sides must be at least 17 px with three stages.

    Attributes:
        num_classes: outputs of the head.
        widths: of the Fire modules of each stage; each stage starts with pooling.
        stem_width: channels of the stem.
        dtype: compute dtype; parameters stay float32, logits are float32.
        dropout: share of the head's inputs that are dropped in training.
        remat: recompute each Fire module's activations in the backward pass: less memory, more time.
    """

    num_classes: int
    widths: Sequence[Sequence[int]] = ((16, 16), (32, 32), (48, 48, 64, 64))
    stem_width: int = 64
    dtype: Any = jnp.float32
    dropout: float = 0.0
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits (batch, num_classes), float32, from images (batch, height, width, channels).

        Raises:
            CwpsError: images so small that nothing is left of them after the last pooling.
        """
        conv = functools.partial(nn.Conv, dtype=self.dtype)
        fire_class: Any = nn.remat(Fire) if self.remat else Fire
        x = conv(
            self.stem_width,
            (3, 3),
            strides=2,
            padding="VALID",
            kernel_init=nn.initializers.he_uniform(),
            name="stem_conv",
        )(images.astype(self.dtype))
        x = nn.relu(x)
        number = 2  # the paper counts the stem
        for stage in self.widths:
            x = max_pool(x)
            for width in stage:
                x = fire_class(width, self.dtype, name=f"fire{number}")(x)
                number += 1
        if 0 in x.shape[1:3]:
            height, width = images.shape[1:3]
            raise CwpsError(f"images of {height} x {width} px are too small for SqueezeNet; enlarge them")
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = conv(self.num_classes, (1, 1), kernel_init=nn.initializers.normal(0.01), name="head")(x)
        return jnp.mean(nn.relu(x), axis=(1, 2), dtype=jnp.float32)


def max_pool(x: jax.Array) -> jax.Array:
    """Returns 3x3 maxima with stride 2 of (batch, height, width, channels).

    A last window that exceeds the edge by one pixel counts too, as with PyTorch's `ceil_mode`.
    """
    height, width = x.shape[1:3]
    padding = ((0, (height + 1) % 2), (0, (width + 1) % 2))
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=padding)


TORCHVISION = Table(
    "torchvision",
    (
        Entry("stem_conv", "features.0", CONV),
        # The paper counts convolutions and Fire modules, torchvision the activations and poolings too.
        *(
            Entry(f"fire{number}/{conv}", f"features.{position}.{conv}", CONV)
            for number, position in enumerate((3, 4, 6, 7, 9, 10, 11, 12), start=2)
            for conv in ("squeeze", "expand1x1", "expand3x3")
        ),
        Entry("head", "classifier.1", CONV),
    ),
)

BACKBONES = {
    "squeezenet1_1": Backbone(
        SqueezeNet,
        {"widths": ((16, 16), (32, 32), (48, 48, 64, 64)), "stem_width": 64},
        1_235_496,
        (TORCHVISION,),
    ),
}
