"""The preparation of an image on the host: it is cut to its box, resized, cropped, and augmented.

Sizes and places are torchvision's (Resize, CenterCrop, RandomCrop, RandomResizedCrop). Whole images are
resized by Pillow; random parts and mirror images are OpenCV's, which is several times as fast.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
import PIL
from PIL import Image

from cwps_jax.data import decode
from cwps_jax.data.augmentation import color_jitter, randaugment
from cwps_jax.data.source import Box
from cwps_jax.errors import CwpsError
from cwps_jax.settings.data import Crop, DataConfig, Interpolation

TRIES = 10  # of RandomResizedCrop, before it takes the middle
ASPECTS = (3 / 4, 4 / 3)  # width to height, of RandomResizedCrop
# Of longer images only the middle is resized: a line of one pixel by a million must not fill the memory.
LONGEST = 64  # longer side to shorter side
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class Part(NamedTuple):
    """A rectangle of an image, in whole pixels."""

    left: int
    top: int
    width: int
    height: int


@dataclasses.dataclass(frozen=True)
class Transform:
    """The transforms of one data set, from images as they are stored to the pixels of a batch.

    Images are encoded files or arrays, uint8, (height, width, 3), or (height, width, 1) and (height, width)
    for grey ones. Boxes are shares of width and height. Results are uint8 (height, width, 3); they may share
    memory with an array that was given and are not to be written to. A JPEG that is much larger than needed
    is decoded at a half, a quarter or an eighth of its size: never below twice what it is resized to, or, for
    a random part, below that size itself. Resizing is anti-aliased, except for random parts of less than
    twice their new size.

    All functions raise `decode.Undecodable` for bytes that are not an image, and CwpsError for an array or
    box that cannot be one.

    The fields are those of `DataConfig`.
    """

    image_size: int
    shorter_side: int
    interpolation: Interpolation = "bilinear"
    crop: Crop = "center"
    crop_area: tuple[float, ...] = (0.08, 1.0)
    flip: bool = False
    color_jitter: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    randaugment_layers: int = 0
    randaugment_magnitude: float = 9.0
    image_bits: int = 0

    @classmethod
    def of(cls, settings: DataConfig) -> "Transform":
        """Returns the transforms of a config whose `image_size` is known."""
        return cls(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(cls)})

    @property
    def stored_as(self) -> str:
        """The settings on which the pixels of `stored` depend."""
        size = f"square {self.image_size}" if self.crop == "stretch" else f"{self.shorter_side}"
        bits = f" {self.image_bits} bits" if self.image_bits else ""
        return f"{size} {self.interpolation} {PIL.__version__}{bits}"

    @property
    def evaluated_as(self) -> dict[str, Any]:
        """The preparation of an image in evaluation, by keys of `DataConfig`."""
        crop = "stretch" if self.crop == "stretch" else "center"
        resize = self.image_size if crop == "stretch" else self.shorter_side
        said = {"image_size": self.image_size, "resize": resize, "crop": crop}
        return said | {"interpolation": self.interpolation, "image_bits": self.image_bits}

    def stored(self, image: bytes | np.ndarray, box: Box | None = None) -> np.ndarray:
        """Returns the image for a cache: the whole box, with a shorter side of at most `shorter_side`.

        Smaller images keep their size. `evaluation` and `training` of it equal those of the original to the
        bit, except for "random_resized" parts, which then have the cache's resolution.
        """
        return self._resized(image, box, enlarge=False)

    def evaluation(self, image: bytes | np.ndarray, box: Box | None = None) -> np.ndarray:
        """Returns the middle square of the image resized to `shorter_side`, or all of it, stretched."""
        pixels = self._resized(image, box)
        return self._square(pixels, *(round((side - self.image_size) / 2) for side in pixels.shape[:2]))

    @property
    def draws(self) -> int:
        """The count of numbers in [0, 1) that `training` takes; each option has its own numbers."""
        return 4 * TRIES + 9 + 2 * self.randaugment_layers

    def training(self, image: bytes | np.ndarray, box: Box | None, draws: np.ndarray) -> np.ndarray:
        """Returns a random crop, mirrored or not, then changed by RandAugment and colour jitter."""
        if self.crop == "random_resized":
            pixels = self._random_resized(image, box, draws[: 4 * TRIES].reshape(TRIES, 4))
        elif self.crop == "random":
            pixels = self._resized(image, box)
            places = zip(pixels.shape[:2], draws[:2], strict=True)
            pixels = self._square(
                pixels, *(int(draw * (side - self.image_size + 1)) for side, draw in places)
            )
        else:
            pixels = self.evaluation(image, box)
        if self.flip and draws[4 * TRIES] < 0.5:
            pixels = decode.opencv().flip(pixels, 1)  # where NumPy takes seven times as long
        if self.randaugment_layers or any(self.color_jitter):
            jitter, layers = np.split(draws[4 * TRIES + 1 :], [8])
            picture = Image.fromarray(pixels)
            picture = randaugment(picture, self.randaugment_magnitude, layers.reshape(-1, 2))
            pixels = np.asarray(color_jitter(picture, self.color_jitter, jitter))
        return pixels

    def _resized(self, image: bytes | np.ndarray, box: Box | None, enlarge: bool = True) -> np.ndarray:
        """Returns the box with its shorter side at `shorter_side`, or, without `enlarge`, at most that.

        If it is to be stretched, it is a square of `image_size`.
        """
        opened = _opened(image)
        part = _middle(_boxed(opened, box))
        short = min(part.width, part.height)
        target = self.shorter_side if enlarge else min(self.shorter_side, short)
        size = (int(target * part.width / short), int(target * part.height / short))
        if self.crop == "stretch":
            size = (self.image_size, self.image_size)
        if isinstance(opened, np.ndarray):
            pixels = _cut(opened, part)
            if (part.width, part.height) == size:
                return pixels
            picture = Image.fromarray(pixels)
        else:
            picture = _decoded(opened, part, (2 * size[0], 2 * size[1]), self.image_bits or 16)
        return np.asarray(picture.resize(size, RESAMPLING[self.interpolation]))

    def _random_resized(self, image: bytes | np.ndarray, box: Box | None, draws: np.ndarray) -> np.ndarray:
        opened = _opened(image)
        whole = _boxed(opened, box)
        part = random_part(whole.width, whole.height, self.crop_area, draws)
        part = part._replace(left=whole.left + part.left, top=whole.top + part.top)
        size = (self.image_size, self.image_size)
        if isinstance(opened, np.ndarray):
            pixels = _cut(opened, part)
        else:
            pixels = np.asarray(_decoded(opened, part, size, self.image_bits or 16))
        opencv = decode.opencv()
        method = {"bilinear": opencv.INTER_LINEAR, "bicubic": opencv.INTER_CUBIC}[self.interpolation]
        if min(pixels.shape[:2]) >= 2 * self.image_size:  # or most pixels would have no part in the result
            method = opencv.INTER_AREA
        return opencv.resize(pixels, size, interpolation=method)

    def _square(self, pixels: np.ndarray, top: int, left: int) -> np.ndarray:
        return _cut(pixels, Part(left, top, self.image_size, self.image_size))


def random_part(width: int, height: int, areas: tuple[float, ...], draws: np.ndarray) -> Part:
    """Returns RandomResizedCrop's part of an image, or its middle if no try fits.

    Args:
        width, height: of the image.
        areas: smallest and largest share of the image.
        draws: (tries, 4), in [0, 1), for the area, the aspect, and the place across and down.
    """
    for area, aspect, across, down in draws.tolist():
        target = width * height * (areas[0] + area * (areas[1] - areas[0]))
        ratio = ASPECTS[0] * (ASPECTS[1] / ASPECTS[0]) ** aspect  # uniform in its logarithm
        wide, high = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < wide <= width and 0 < high <= height:
            return Part(int(across * (width - wide + 1)), int(down * (height - high + 1)), wide, high)
    wide = min(width, round(height * ASPECTS[1]))
    high = min(height, round(width / ASPECTS[0]))
    return Part((width - wide) // 2, (height - high) // 2, wide, high)


def _opened(image: bytes | np.ndarray) -> Image.Image | np.ndarray:
    """Returns an image file with only its header read, or an array (height, width, channels)."""
    if not isinstance(image, np.ndarray):
        return decode.open_image(image)
    pixels = image[:, :, None] if image.ndim == 2 else image
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or not pixels.size:
        raise CwpsError(
            f"an image is an array {image.shape} of {image.dtype}: give uint8, (height, width) or "
            "(height, width, 1 or 3)"
        )
    return pixels


def _decoded(opened: Image.Image, part: Part, needed: tuple[int, int], bits: int) -> Image.Image:
    """Returns a part of an image file, of at least the needed size if it has that, else of its own."""
    width, height = decode.upright_size(opened)  # before it is decoded, at what may be another size
    fits = min(part.width / needed[0], part.height / needed[1])
    reduction = next((one for one in (8, 4, 2) if one <= fits), 1)
    picture = decode.to_rgb(opened, reduction, bits)
    across, down = picture.width / width, picture.height / height
    left, top = int(part.left * across), int(part.top * down)
    right = max(left + 1, round((part.left + part.width) * across))
    bottom = max(top + 1, round((part.top + part.height) * down))
    return picture.crop((left, top, right, bottom))


def _boxed(opened: Image.Image | np.ndarray, box: Box | None) -> Part:
    """Returns the part of an image that a box is; all of it without one."""
    if isinstance(opened, np.ndarray):
        height, width = opened.shape[:2]
    else:
        width, height = decode.upright_size(opened)
    if box is None:
        return Part(0, 0, width, height)
    left, top, right, bottom = (min(max(edge, 0.0), 1.0) for edge in box)
    if not (left < right and top < bottom):
        raise CwpsError(
            f"the box {box} of an image is empty: it must be left, top, right and bottom in [0, 1]"
        )
    first = min(round(left * width), width - 1), min(round(top * height), height - 1)
    last = max(round(right * width), first[0] + 1), max(round(bottom * height), first[1] + 1)
    return Part(*first, last[0] - first[0], last[1] - first[1])


def _middle(part: Part) -> Part:
    """Returns the part, its longer side cut from both ends to `LONGEST` times the shorter one."""
    wide = min(part.width, LONGEST * part.height)
    high = min(part.height, LONGEST * part.width)
    return Part(part.left + (part.width - wide) // 2, part.top + (part.height - high) // 2, wide, high)


def _cut(pixels: np.ndarray, part: Part) -> np.ndarray:
    """Returns a part of an array, with three channels."""
    cut = pixels[part.top : part.top + part.height, part.left : part.left + part.width]
    return np.repeat(cut, 3, axis=2) if cut.shape[2] == 1 else cut
