"""Decodes an image file to an upright RGB image of Pillow, or gives the reason in one line."""

import functools
import io
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL.ImageFile import ImageFile

from cwps_jax.extras import check_extra
from cwps_jax.files import LFS_POINTER

MAX_PIXELS = 50_000_000

_Result = TypeVar("_Result")
# Not ImageOps.exif_transpose: it writes the rest of the EXIF anew, and fails where something is wrong there.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Undecodable(Exception):
    """An image that cannot be decoded. Its text is the reason; the caller names the file."""


class TooLarge(Undecodable):
    """An image of more pixels than are ever decoded, as its header says."""


class _JpegFile(JpegImagePlugin.JpegImageFile):
    """A JPEG file that is opened without Pillow's search of its EXIF, which warns of broken data."""

    def _read_dpi_from_exif(self) -> None:
        pass


class _PngFile(PngImagePlugin.PngImageFile):
    """A PNG file that keeps its content where its colours have 16 bits, of which Pillow takes the upper 8."""

    deep: bytes = b""


class _TiffFile(TiffImagePlugin.TiffImageFile):
    """The same of a TIFF file."""

    deep: bytes = b""


# Not Image.open: it may warn on its way to an answer, and where threads are at work no warning can be caught.
_FORMATS: tuple[tuple[tuple[bytes, ...], type[ImageFile]], ...] = (
    ((b"\xff\xd8\xff",), _JpegFile),
    ((b"\x89PNG\r\n\x1a\n",), _PngFile),
    ((b"GIF87a", b"GIF89a"), GifImagePlugin.GifImageFile),
    ((b"RIFF",), WebPImagePlugin.WebPImageFile),
    ((b"BM",), BmpImagePlugin.BmpImageFile),
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _TiffFile),
    ((b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"), PpmImagePlugin.PpmImageFile),
)


def open_image(content: bytes) -> Image.Image:
    """Returns an image file of which only the header has been read, with its size as it is stored.

    Args:
        content: the content of a JPEG, PNG, GIF, WEBP, BMP, TIFF, PPM, PGM or PBM file.

    Raises:
        Undecodable: it is not such a file, its header is broken, or, as `TooLarge`, it has more than
            `MAX_PIXELS` pixels.
    """
    if not content:
        raise Undecodable("the file is empty")
    opener = next((opener for starts, opener in _FORMATS if content.startswith(starts)), None)
    if content.startswith(LFS_POINTER):
        raise Undecodable("a Git-LFS pointer, not the image itself; run `git lfs pull` where it is from")
    if opener is None:
        raise Undecodable("not a JPEG, PNG, GIF, WEBP, BMP, TIFF or PPM file")
    image = _attempt(lambda: opener(io.BytesIO(content)), opener.format)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise TooLarge(
            f"{width} x {height} pixels are more than {MAX_PIXELS // 10**6} megapixels; scale it down"
        )
    if isinstance(image, _PngFile | _TiffFile) and any(";16" in str(tile.args) for tile in image.tile):
        image.deep = b"" if image.mode.startswith("I") else content
    return image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Returns width and height of the image once it is upright.

    They are in the header, except for PNG and TIFF, whose orientation may come after the pixels. These are
    decoded here, and `to_rgb` does not decode them again.

    Args:
        image: from `open_image`.

    Raises:
        Undecodable: the image had to be decoded and is truncated or broken.
    """
    if isinstance(image, _PngFile | _TiffFile):
        _attempt(image.load, image.format)
    width, height = image.size
    return (height, width) if _orientation(image) in (5, 6, 7, 8) else (width, height)


def to_rgb(image: Image.Image, reduction: int = 1, bits: int = 16) -> Image.Image:
    """Returns the decoded image in mode "RGB", turned upright as its EXIF orientation says.

    The first frame of an animation, the first picture of a file of several. Colours are converted as Pillow's
    `convert("RGB")` does it, and as ImageNet's loaders expect: transparency is dropped, not laid on a ground.
    Images of more than 8 bits are scaled to 8; Pillow would cut grey off at 255, and always keep the upper 8
    bits of colours.

    Args:
        image: from `open_image`.
        reduction: 1, 2, 4 or 8: JPEG is decoded at that fraction of its size (rounded up), which is faster;
            other formats keep theirs.
        bits: number of bits that an image of more than 8 really uses; higher values are white.

    Raises:
        Undecodable: the image is truncated or broken, or its pixels are floating-point numbers.
    """
    if reduction > 1 and isinstance(image, _JpegFile):
        width, height = image.size
        image.draft(None, (max(1, width // reduction), max(1, height // reduction)))
    _attempt(image.load, image.format)
    if image.mode == "F":
        raise Undecodable("its pixels are floating-point numbers of no known range; store them as 8 bits")
    picture, pixels = image, _deep_pixels(image)
    if pixels is not None:
        picture = Image.fromarray(np.clip(pixels // 2 ** (bits - 8), 0, 255).astype(np.uint8))
    if picture.mode != "RGB":
        picture.info.pop("transparency", None)  # Pillow would warn that it is lost
        picture = picture.convert("RGB")
    turn = _TURNS.get(_orientation(image))
    return picture if turn is None else picture.transpose(turn)


def values(image: Image.Image, picture: Image.Image) -> tuple[int, int, int]:
    """Returns how many bits the pixels of a decoded image are stored with, and their lowest and highest.

    Args:
        image: from `open_image`: 16 or, for all others, 8 bits.
        picture: what `to_rgb` made of it.
    """
    pixels = _deep_pixels(image)
    if pixels is not None:
        return 16, int(pixels.min()), int(pixels.max())
    bands = picture.getextrema()
    each = bands if isinstance(bands[0], tuple) else (bands,)
    return 8, int(min(band[0] for band in each)), int(max(band[1] for band in each))


@functools.cache
def opencv() -> Any:
    """Returns OpenCV, which is imported only when an image needs it."""
    check_extra("photos", "config.flip, config.crop = 'random_resized' or an image of 16-bit colours")
    import cv2

    cv2.setNumThreads(1)  # each batch has a thread of its own
    return cv2


def _deep_pixels(image: Image.Image) -> np.ndarray | None:
    """Returns the pixels of a decoded image of more than 8 bits as they are stored, None of any other.

    Args:
        image: from `open_image`, decoded.

    Returns:
        Grey, (height, width), or colours, (height, width, 3).
    """
    if image.mode.startswith("I"):
        return np.asarray(image)
    if not (isinstance(image, _PngFile | _TiffFile) and image.deep):
        return None
    cv2 = opencv()
    pixels = cv2.imdecode(np.frombuffer(image.deep, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3:
        raise Undecodable(
            f"a {image.format} file with colours of 16 bits in a form that is not read; store 8"
        )
    return pixels[:, :, 2::-1]  # from blue, green, red and, perhaps, transparency


def _attempt(action: Callable[[], _Result], kind: str | None) -> _Result:
    """Returns the result of an action of Pillow; an error of a broken file becomes `Undecodable`."""
    try:
        return action()
    except MemoryError:  # no fault of the file
        raise
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise Undecodable(f"broken {kind} file: {why}") from error


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation; 1 where there is none, or where the EXIF is broken."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:  # the pixels are good: what is broken only describes them
        return 1
