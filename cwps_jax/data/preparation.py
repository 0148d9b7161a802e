"""The preparation of a batch on the device: normalised pixels, blended images and losses (mixup, cutmix)."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cwps_jax.errors import CwpsError
from cwps_jax.settings import DataConfig

# (outputs, batch) -> one value per item, (batch,): the trainer's form of a loss.
Loss = Callable[[jax.Array, Mapping[str, jax.Array]], jax.Array]


@dataclasses.dataclass(frozen=True)
class Preparation:
    """The preparation of batches. It is hashable, so it can be a static argument of a compiled step.

    Attributes:
        mean, deviation: mean and deviation of each channel of images in [0, 1]; None if images go into the
            model as they are.
        mixup, cutmix: alpha of their Beta distributions; 0 for none. With both, one of them is drawn for each
            step.
    """

    mean: tuple[float, ...] | None = None
    deviation: tuple[float, ...] | None = None
    mixup: float = 0.0
    cutmix: float = 0.0

    @classmethod
    def of(cls, settings: DataConfig) -> "Preparation":
        """Returns the preparation of a config."""
        return cls(settings.pixel_mean, settings.pixel_deviation, settings.mixup, settings.cutmix)

    @property
    def group(self) -> int:
        """The number of items that have to be on one device together."""
        return 2 if self.mixup or self.cutmix else 1

    @property
    def evaluated_as(self) -> dict[str, Any]:
        """The preparation of a batch in evaluation, by keys of `DataConfig`."""
        return {"pixel_mean": self.mean, "pixel_deviation": self.deviation}

    def normalise(self, images: jax.Array) -> jax.Array:
        """Returns `(images / 255 - mean) / deviation`, float32; the images as they are without a mean.

        Args:
            images: (batch, height, width, channels), uint8 unless there is no mean.

        Raises:
            CwpsError: images of another type, or another number of channels than mean and deviation have.
        """
        if self.mean is None or self.deviation is None:
            return images
        if images.dtype != jnp.uint8:
            raise CwpsError(f"images are {images.dtype}: give uint8, or a Preparation without a mean")
        if len(self.mean) != images.shape[-1] or len(self.deviation) != images.shape[-1]:
            raise CwpsError(
                f"images have {images.shape[-1]} channels, the mean {len(self.mean)} and the deviation "
                f"{len(self.deviation)} numbers: give one for each channel"
            )
        deviation = np.array(self.deviation)
        scale = (1 / (255 * deviation)).astype(np.float32)
        offset = (np.array(self.mean) / deviation).astype(np.float32)
        return images.astype(jnp.float32) * scale - offset

    def blend(self, batch: Mapping[str, jax.Array], key: jax.Array) -> Mapping[str, jax.Array]:
        """Returns the batch with images of neighbours blended, or the batch itself if nothing is blended.

        Rows 2k and 2k + 1 are partners: batches are shuffled, and neighbours live on one device. One weight
        and one rectangle serve the whole batch, so every device and host has to be given the same key.

        Args:
            batch: "image", float (batch, height, width, channels), an even number on each device.
            key: random key of this step.

        Returns:
            The batch with "image" blended and "share", float32 (batch,), the weight of an item's own label.

        Raises:
            CwpsError: images that are not float, or an odd number of them.
        """
        if not (self.mixup or self.cutmix):
            return batch
        images = batch["image"]
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise CwpsError(f"images are {images.dtype}: normalise them before they are blended")
        weights, share = self._weights(key, images.shape[1], images.shape[2])
        weights = weights.astype(images.dtype)[None, :, :, None]
        blended_images = weights * images + (1 - weights) * swap_pairs(images)
        return {**batch, "image": blended_images, "share": jnp.full(len(images), share)}

    def _weights(self, key: jax.Array, height: int, width: int) -> tuple[jax.Array, jax.Array]:
        """Returns the weight of an image's own pixels, (height, width), and that of its label."""
        coin, beta, place = jax.random.split(key, 3)
        cut = jax.random.bernoulli(coin) if self.mixup and self.cutmix else jnp.bool_(self.cutmix > 0)
        alpha = jnp.where(cut, jnp.float32(self.cutmix), jnp.float32(self.mixup))
        weight = jax.random.beta(beta, alpha, alpha)
        size = jnp.array([height, width])
        sides = (jnp.sqrt(1 - weight) * size.astype(jnp.float32)).astype(jnp.int32)
        # The rectangle may reach over the border: its share is what of it lies inside.
        first = jax.random.randint(place, (2,), 0, size) - sides // 2
        row, column = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
        inside = (row >= first[0]) & (row < first[0] + sides[0])
        inside &= (column >= first[1]) & (column < first[1] + sides[1])
        own = jnp.count_nonzero(~inside).astype(jnp.float32) / (height * width)
        return jnp.where(cut, (~inside).astype(jnp.float32), weight), jnp.where(cut, own, weight)


def swap_pairs(array: jax.Array) -> jax.Array:
    """Returns the array with rows 2k and 2k + 1 swapped. Raises CwpsError for an odd number of rows."""
    if len(array) % 2:
        raise CwpsError(
            f"mixup and cutmix pair neighbours: {len(array)} items per device must be an even number"
        )
    return array.reshape(-1, 2, *array.shape[1:])[:, ::-1].reshape(array.shape)


def blended(loss: Loss) -> Loss:
    """Returns the loss of blended batches: `share * loss(own) + (1 - share) * loss(partner's fields)`.

    Without "share" in a batch it is the loss itself, as in evaluation.
    """

    def of_both(outputs: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        own = loss(outputs, batch)
        if "share" not in batch:
            return own
        partners = loss(outputs, {name: swap_pairs(array) for name, array in batch.items()})
        return batch["share"] * own + (1 - batch["share"]) * partners

    return of_both
