"""Changes of a picture's colours and shape: RandAugment and colour jitter, by given random numbers."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

FILL = (124, 116, 104)  # ImageNet's mean colour, as in timm: what is moved in from outside
# (RGB picture, level in [-1, 1]) -> picture. A level of 1 is magnitude 10, its sign is the direction.
Operation = Callable[[Image.Image, float], Image.Image]


def _moved(picture: Image.Image, *coefficients: float) -> Image.Image:
    return picture.transform(
        picture.size,
        Image.Transform.AFFINE,
        coefficients,
        resample=Image.Resampling.BILINEAR,
        fillcolor=FILL,
    )


def _rotated(picture: Image.Image, level: float) -> Image.Image:
    return picture.rotate(30 * level, resample=Image.Resampling.BILINEAR, fillcolor=FILL)


# The 14 operations and ranges of the paper (arXiv 1909.13719) and of torchvision, whose 31 magnitudes are
# these times three. Bilinear and filled with FILL, where torchvision takes the nearest pixel and black;
# solarize starts from 256, so that magnitude 0 changes nothing.
OPERATIONS: dict[str, Operation] = {
    "identity": lambda picture, level: picture,
    "autocontrast": lambda picture, level: ImageOps.autocontrast(picture),
    "equalize": lambda picture, level: ImageOps.equalize(picture),
    "rotate": _rotated,
    "solarize": lambda picture, level: ImageOps.solarize(picture, round(256 * (1 - abs(level)))),
    "color": lambda picture, level: ImageEnhance.Color(picture).enhance(1 + 0.9 * level),
    "posterize": lambda picture, level: ImageOps.posterize(picture, 8 - round(4 * abs(level))),
    "contrast": lambda picture, level: ImageEnhance.Contrast(picture).enhance(1 + 0.9 * level),
    "brightness": lambda picture, level: ImageEnhance.Brightness(picture).enhance(1 + 0.9 * level),
    "sharpness": lambda picture, level: ImageEnhance.Sharpness(picture).enhance(1 + 0.9 * level),
    "shear_x": lambda picture, level: _moved(picture, 1, 0.3 * level, 0, 0, 1, 0),
    "shear_y": lambda picture, level: _moved(picture, 1, 0, 0, 0.3 * level, 1, 0),
    "translate_x": lambda picture, level: _moved(
        picture, 1, 0, int(150 / 331 * picture.width * level), 0, 1, 0
    ),
    "translate_y": lambda picture, level: _moved(
        picture, 1, 0, 0, 0, 1, int(150 / 331 * picture.height * level)
    ),
}


def randaugment(picture: Image.Image, magnitude: float, draws: np.ndarray) -> Image.Image:
    """Returns the picture after one operation of `OPERATIONS` for each row of draws, one after the other.

    Args:
        picture: RGB.
        magnitude: strength of all operations, from 0 to 10.
        draws: (layers, 2), in [0, 1), for the operation and its direction.
    """
    operations = list(OPERATIONS.values())
    for which, direction in draws.tolist():
        level = magnitude / 10 if direction < 0.5 else -magnitude / 10
        picture = operations[int(which * len(operations))](picture, level)
    return picture


def color_jitter(picture: Image.Image, strengths: Sequence[float], draws: np.ndarray) -> Image.Image:
    """Returns the picture with random brightness, contrast, saturation and hue, in random order.

    Args:
        picture: RGB.
        strengths: four numbers s. The first three draw a factor from [max(0, 1 - s), 1 + s]; hue is turned by
            a share of the colour circle from [-s, s]. A change of strength 0 is left out.
        draws: (8,), in [0, 1): four for the strengths and four whose order is the order of the changes.
    """
    for change in np.argsort(draws[4:]).tolist():
        strength = strengths[change]
        if not strength:
            continue
        draw = float(draws[change])
        if change == 3:
            picture = _turned(picture, strength * (2 * draw - 1))
        else:
            low = max(0.0, 1 - strength)
            enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[change]
            picture = enhance(picture).enhance(low + draw * (1 + strength - low))
    return picture


def _turned(picture: Image.Image, share: float) -> Image.Image:
    """Returns the picture with its hues turned by a share of the colour circle."""
    hue, saturation, value = picture.convert("HSV").split()
    hue = hue.point([(old + round(256 * share)) % 256 for old in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")
