"""Decoding: pixels and sizes against Pillow and NumPy, and files that are broken."""

import io
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from cwps_jax.data.decode import MAX_PIXELS, Undecodable, open_image, to_rgb, upright_size, values

# Smooth, so that JPEG keeps it, and unlike itself however it is turned.
ROWS, COLUMNS = np.mgrid[0:33, 0:46] / 50
UPRIGHT = (np.stack([ROWS, COLUMNS, (1 - ROWS) * COLUMNS], -1) * 255).astype(np.uint8)
GREY = UPRIGHT[..., 0] // 2 + UPRIGHT[..., 1] // 2
PHOTO = Image.fromarray(UPRIGHT)
# How an image lies in a file of that EXIF orientation, by EXIF's own table: which sides of the upright image
# are the file's first row and first column.
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.swapaxes(0, 1),
    6: UPRIGHT[:, ::-1].swapaxes(0, 1),
    7: UPRIGHT[::-1, ::-1].swapaxes(0, 1),
    8: UPRIGHT[::-1].swapaxes(0, 1),
}


def encoded(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(image)) if isinstance(image, np.ndarray) else image
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(content: bytes, reduction: int = 1) -> np.ndarray:
    picture = to_rgb(open_image(content), reduction)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def by_pillow(content: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))


def exif_block(orientation: int, order: str = "<", kind: int = 3) -> bytes:
    """Returns a block of EXIF, byte by byte as its specification has it, with another tag before the one."""
    entries = struct.pack(f"{order}HHLL", 0x0100, 4, 1, 7)
    value = struct.pack(f"{order}HH", orientation, 0) if kind == 3 else struct.pack(f"{order}L", orientation)
    entries += struct.pack(f"{order}HHL", 0x0112, kind, 1) + value
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HL", 42, 8)
    return b"Exif\0\0" + head + struct.pack(f"{order}H", 2) + entries + bytes(4)


def palette(colours: int = 16) -> Image.Image:
    return PHOTO.quantize(colours, dither=Image.Dither.NONE)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data))


def with_alpha(mode: str) -> Image.Image:
    """Returns an image half of which is transparent, with colours below the transparency."""
    image = PHOTO.convert(mode)
    image.putalpha(Image.fromarray((COLUMNS > 0.4).astype(np.uint8) * 255))
    return image


FILES = {
    "jpeg": encoded(PHOTO, "JPEG"),
    "progressive": encoded(PHOTO, "JPEG", progressive=True),
    "grey jpeg": encoded(PHOTO.convert("L"), "JPEG"),
    "cmyk jpeg": encoded(PHOTO.convert("CMYK"), "JPEG"),
    "two-frame jpeg": encoded(PHOTO, "MPO", save_all=True, append_images=[PHOTO.rotate(180)]),
    "png": encoded(PHOTO, "PNG"),
    "grey png": encoded(PHOTO.convert("L"), "PNG"),
    "bits": encoded(PHOTO.convert("1"), "PNG"),
    "palette": encoded(palette(), "PNG"),
    "palette, one colour transparent": encoded(palette(), "PNG", transparency=3),
    "palette, colours transparent": encoded(palette(), "PNG", transparency=bytes(range(0, 160, 10))),
    "rgba": encoded(with_alpha("RGBA"), "PNG"),
    "grey with alpha": encoded(with_alpha("LA"), "PNG"),
    "rgb, one colour transparent": encoded(PHOTO, "PNG", transparency=(0, 0, 0)),
    "grey, one level transparent": encoded(PHOTO.convert("L"), "PNG", transparency=0),
    "animated png": encoded(PHOTO, "PNG", save_all=True, append_images=[PHOTO.rotate(180)]),
    "gif": encoded(palette(), "GIF"),
    "animated gif": encoded(palette(), "GIF", save_all=True, append_images=[palette(4)], transparency=2),
    "webp": encoded(PHOTO, "WEBP"),
    "webp with alpha": encoded(with_alpha("RGBA"), "WEBP", lossless=True, exact=True),
    "bmp": encoded(PHOTO, "BMP"),
    "tiff": encoded(PHOTO, "TIFF", compression="tiff_lzw"),
    "cmyk tiff": encoded(PHOTO.convert("CMYK"), "TIFF"),
    "ppm": encoded(PHOTO, "PPM"),
    "pgm": encoded(PHOTO.convert("L"), "PPM"),
    "pbm": encoded(PHOTO.convert("1"), "PPM"),
}
LOSSLESS = (
    "png",
    "rgba",
    "rgb, one colour transparent",
    "webp with alpha",
    "bmp",
    "tiff",
    "ppm",
    "animated png",
)


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_is_converted_as_pillow_does(name):
    image = open_image(FILES[name])
    assert upright_size(image) == (46, 33)
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), by_pillow(FILES[name]))


@pytest.mark.parametrize("name", LOSSLESS)
def test_pixels_are_those_that_were_stored_whatever_their_transparency(name):
    np.testing.assert_array_equal(decoded(FILES[name]), UPRIGHT)


@pytest.mark.parametrize("transparency", [3, bytes(range(0, 160, 10))])
def test_colours_of_a_palette_stay_below_their_transparency(transparency):
    colours = np.asarray(palette().convert("RGB"))
    np.testing.assert_array_equal(decoded(encoded(palette(), "PNG", transparency=transparency)), colours)
    if isinstance(transparency, int):
        np.testing.assert_array_equal(decoded(encoded(palette(), "GIF", transparency=3)), colours)


@pytest.mark.parametrize("kind", ["png", "tiff", "big-endian tiff", "pgm"])
def test_grey_of_16_bits_is_scaled_not_cut_off(kind):
    levels = GREY.astype(np.uint16) * 257
    if kind == "pgm":
        content = b"P5 46 33 65535\n" + levels.astype(">u2").tobytes()
    else:
        image = Image.frombytes("I;16B", (46, 33), levels.astype(">u2").tobytes())
        content = encoded(levels if kind != "big-endian tiff" else image, kind.split()[-1])
    assert open_image(content).mode.startswith("I")
    np.testing.assert_array_equal(decoded(content), np.repeat(GREY[..., None], 3, -1))
    assert (by_pillow(content) == 255).mean() > 0.9  # what plain conversion makes of it


def deep_png(levels: np.ndarray, kind: int, orientation: int = 0) -> bytes:
    """Returns a PNG file of 16 bits, by hand: kind 2 is colours, 6 with transparency, 4 grey with it."""
    height, width = levels.shape[:2]
    chunk = lambda name, body: (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    )
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)),
            chunk(b"eXIf", exif.tobytes()[6:]) if orientation else b"",
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        )
    )


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_colours_of_16_bits_are_scaled_by_what_they_use(kind, channels):
    """Pillow takes the upper 8 bits: of 12 that are used, these are four, and all but black."""
    levels = np.random.default_rng(0).integers(0, 2**12, (33, 46, channels), np.uint16)
    image = open_image(deep_png(levels, kind))
    colours = levels[..., :3] if channels > 2 else np.repeat(levels[..., :1], 3, -1)
    np.testing.assert_array_equal(np.asarray(to_rgb(image, bits=12)), colours >> 4)
    assert values(image, to_rgb(image)) == (16, colours.min(), colours.max())
    cut = open_image(deep_png(levels << 4, kind))
    np.testing.assert_array_equal(np.asarray(to_rgb(cut)), colours >> 4)


def test_colours_of_16_bits_are_turned_once_and_broken_ones_told_of():
    levels = np.random.default_rng(1).integers(0, 2**16, (33, 46, 3), np.uint16)
    image = open_image(deep_png(levels, 2, orientation=6))
    assert upright_size(image) == (33, 46)
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), np.rot90(levels >> 8, -1))
    with pytest.raises(Undecodable, match="broken PNG file"):
        to_rgb(open_image(deep_png(levels, 2)[:-300]))


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_exif_orientation_is_applied(kind, orientation):
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}.get(kind, {})
    if kind == "TIFF":
        options["tiffinfo"] = {0x0112: orientation}
    else:
        options["exif"] = exif_block(orientation)
    image = open_image(encoded(STORED[orientation], kind, **options))
    assert upright_size(image) == (46, 33)
    pixels = np.asarray(to_rgb(image)).astype(int)
    assert pixels.shape == UPRIGHT.shape
    assert np.abs(pixels - UPRIGHT).max() <= (12 if kind == "JPEG" else 0)


@pytest.mark.parametrize(
    "block", [exif_block(6, ">"), exif_block(6, "<", kind=4), exif_block(6, ">", kind=4)]
)
def test_exif_of_either_byte_order(block):
    content = encoded(STORED[6], "JPEG", exif=block)
    assert upright_size(open_image(content)) == (46, 33)
    np.testing.assert_array_equal(decoded(content), by_pillow(content))


def test_an_orientation_that_follows_the_pixels_or_stands_in_xmp_counts():
    plain = encoded(STORED[6], "PNG")
    late = plain[:-12] + chunk(b"eXIf", exif_block(6).removeprefix(b"Exif\0\0")) + plain[-12:]
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
    digits = exif_block(6).hex()
    profile = chunk(
        b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(f"\nexif\n{len(digits)}\n{digits}".encode())
    )
    for content in (
        late,
        encoded(STORED[6], "WEBP", lossless=True, xmp=xmp),
        plain[:33] + profile + plain[33:],
    ):
        image = open_image(content)
        assert upright_size(image) == (46, 33)
        np.testing.assert_array_equal(np.asarray(to_rgb(image)), UPRIGHT)
        np.testing.assert_array_equal(by_pillow(content), UPRIGHT)


def test_an_orientation_that_is_none_turns_nothing():
    broken = (
        exif_block(0),
        exif_block(9),
        exif_block(6)[:30],
        b"Exif\0\0",
        b"Exif\0\0what?",
        exif_block(6, kind=2),
    )
    for block in broken:
        content = encoded(UPRIGHT, "PNG", exif=block)
        np.testing.assert_array_equal(decoded(content), UPRIGHT)


def test_jpeg_is_sized_from_its_header_alone():
    content = encoded(STORED[6], "JPEG", exif=exif_block(6))
    image = open_image(content[: content.index(b"\xff\xda") + 20])
    assert upright_size(image) == (46, 33)
    with pytest.raises(Undecodable, match="broken JPEG file: image file is truncated"):
        to_rgb(image)


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_is_decoded_smaller(reduction, progressive):
    stored = np.kron(STORED[6], np.ones((5, 5, 1), np.uint8))  # 165 x 230
    content = encoded(stored, "JPEG", exif=exif_block(6), quality=95, progressive=progressive)
    picture = to_rgb(open_image(content), reduction)
    assert picture.size == (-(-230 // reduction), -(-165 // reduction))
    whole = Image.fromarray(decoded(content)).reduce(reduction)
    assert np.abs(np.asarray(picture, int) - np.asarray(whole, int)).mean() < 3
    # A side shorter than the reduction does not vanish; formats that cannot do it keep their size.
    assert decoded(encoded(UPRIGHT[:, :3], "JPEG"), reduction).shape[1] == -(-3 // reduction) or reduction > 3
    assert decoded(FILES["png"], reduction).shape == UPRIGHT.shape


def test_what_pillow_warns_of_is_decoded_without_a_warning():
    # Warnings are errors here. The files are such that Pillow does warn.
    long = exif_block(1).replace(
        struct.pack("<HHLL", 0x0100, 4, 1, 7), struct.pack("<HHLL", 0x010E, 2, 9999, 7)
    )
    broken_exif = encoded(PHOTO, "JPEG", exif=long)
    broken_exif = broken_exif[:2] + broken_exif[20:]  # without JFIF's resolution Pillow asks EXIF
    frames = FILES["two-frame jpeg"]
    broken_frames = frames.replace(b"MPF\0II*\0", b"MPF\0XX*\0").replace(b"MPF\0MM\0*", b"MPF\0XX\0*")
    colours = FILES["palette, colours transparent"]
    for content in (broken_exif, broken_frames, colours):
        with pytest.warns(UserWarning):
            expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        np.testing.assert_array_equal(decoded(content), expected)


def huge(kind: str, width: int, height: int) -> bytes:
    """Returns a small file whose header promises that many pixels."""
    if kind == "PNG":
        header = struct.pack(">LL5B", width, height, 8, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(999)))
    if kind == "PPM":
        return f"P6 {width} {height} 255\n".encode() + bytes(999)
    if kind == "GIF":
        content = encoded(palette(), "GIF")
        return content[:6] + struct.pack("<HH", width, height) + content[10:]
    content = encoded(PHOTO, "JPEG")
    start = content.index(b"\xff\xc0") + 5
    return content[:start] + struct.pack(">HH", height, width) + content[start + 4 :]


@pytest.mark.parametrize("kind", ["PNG", "PPM", "GIF", "JPEG"])
def test_huge_images_are_refused_from_their_header(kind):
    for width, height in ((12_000, 9_000), (30_000, 30_000)):  # Pillow warns of the first, refuses the second
        with pytest.raises(Undecodable, match=f"{width} x {height} pixels are more than 50 megapixels"):
            open_image(huge(kind, width, height))
    assert open_image(huge(kind, 10_000, MAX_PIXELS // 10_000)).size == (10_000, 5_000)


@pytest.mark.parametrize("name", ["jpeg", "progressive", "png", "gif", "webp", "bmp", "tiff", "ppm"])
def test_a_file_that_was_cut_off_is_refused(name):
    whole = FILES[name]
    for size in (len(whole) // 2, len(whole) - len(whole) // 8, 12):
        with pytest.raises(Undecodable) as caught:
            to_rgb(open_image(whole[:size]))
        reason = str(caught.value)
        assert reason.startswith("broken ") and len(reason) > 15 and "\n" not in reason


def test_what_is_no_image_is_refused():
    body = FILES["png"].index(b"IDAT") + 4
    zeroed = FILES["png"][: body + 30] + bytes(60) + FILES["png"][body + 90 :]
    for content, reason in (
        (b"", "the file is empty"),
        (b"a list of images", "not a JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a JPEG, PNG"),  # would be run by another program
        (b"P1 is a chapter", "broken PPM file"),
        (zeroed, "broken PNG file"),
        (encoded(Image.fromarray(ROWS.astype(np.float32)), "TIFF"), "floating-point"),
    ):
        with pytest.raises(Undecodable, match=reason):
            to_rgb(open_image(content))


def test_damage_of_any_kind_is_an_image_or_undecodable():
    rng = np.random.default_rng(0)
    names = [name for name in FILES if "tiff" not in name]  # Pillow warns of a TIFF's broken directory
    refused = 0
    for turn in range(600):
        content = bytearray(FILES[names[turn % len(names)]])
        for place in rng.integers(0, len(content), rng.integers(1, 4)):
            content[place] = rng.integers(0, 256)
        try:
            image = open_image(bytes(content))
            size = upright_size(image)
            assert to_rgb(image).size == size
        except Undecodable:
            refused += 1
    assert 60 < refused < 540


def test_lack_of_memory_is_no_fault_of_the_file(monkeypatch):
    image = open_image(FILES["png"])

    def load():
        raise MemoryError

    monkeypatch.setattr(image, "load", load)
    with pytest.raises(MemoryError):
        to_rgb(image)


def test_threads_decode_the_same():
    contents = list(FILES.values()) * 20
    expected = [decoded(content) for content in FILES.values()] * 20
    start = threading.Barrier(8)

    def read(turn: int) -> None:
        start.wait()
        for position in np.random.default_rng(turn).permutation(len(contents)):
            np.testing.assert_array_equal(decoded(contents[position]), expected[position])

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(read, range(8)))
