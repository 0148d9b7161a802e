"""Transforms: against plain Pillow, and what random crops and mirrors have to be."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from cwps_jax.config import DataConfig
from cwps_jax.data import augmentation, decode, transforms
from cwps_jax.data.transforms import Part, Transform, random_part
from cwps_jax.errors import CwpsError

SIZES = [(500, 375), (375, 500), (256, 256), (90, 61), (800, 20), (1, 1)]  # width, height
BOX = (0.2, 0.1, 0.9, 0.6)


def picture(width, height, seed=0):
    """A smooth coloured picture: noise at an eighth of the size, enlarged."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def places(width, height):
    """Pixels that say where they are: red across, green down, in [0, 250]."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, :, 0] = np.round(np.linspace(0, 250, width))
    pixels[:, :, 1] = np.round(np.linspace(0, 250, height))[:, None]
    return pixels


def training(transform, image, box, seed):
    return transform.training(image, box, np.random.default_rng(seed).random(transform.draws))


def reference(image, shorter_side, size, resampling):
    """torchvision's Resize and CenterCrop, as its documentation and its code for PIL images have them."""
    width, height = image.size
    if width <= height:
        image = image.resize((shorter_side, int(shorter_side * height / width)), resampling)
    else:
        image = image.resize((int(shorter_side * width / height), shorter_side), resampling)
    left, top = (round((side - size) / 2.0) for side in image.size)
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_is_resize_and_center_crop(size, interpolation):
    image = picture(*size)
    expected = reference(image, 73, 64, getattr(Image.Resampling, interpolation.upper()))
    transform = Transform(64, 73, interpolation)
    np.testing.assert_array_equal(transform.evaluation(encoded(image, "PNG")), expected)
    np.testing.assert_array_equal(transform.evaluation(np.asarray(image)), expected)


def test_fields_are_the_settings():
    settings = DataConfig(
        image_size=224, interpolation="bicubic", crop="random_resized", crop_area=(0.3, 0.9), flip=True
    )
    expected = Transform(224, 256, "bicubic", "random_resized", (0.3, 0.9), True)
    assert Transform.of(settings) == expected
    assert Transform.of(DataConfig(image_size=224, resize=230)).shorter_side == 230


@pytest.mark.parametrize("as_file", [True, False])
def test_a_box_is_cut_out_first(as_file):
    image = picture(500, 375)
    given = encoded(image, "PNG") if as_file else np.asarray(image)
    part = image.crop((100, 38, 450, 225))
    expected = reference(part, 73, 64, Image.Resampling.BILINEAR)
    transform = Transform(64, 73, crop="random_resized")
    np.testing.assert_array_equal(transform.evaluation(given, (0.2, 38 / 375, 0.9, 0.6)), expected)
    for seed in range(20):
        drawn = training(transform, given, (0.2, 38 / 375, 0.9, 0.6), seed)
        np.testing.assert_array_equal(drawn, training(transform, np.asarray(part), None, seed))
    # A little over the border is the border; a box of no width still has the pixel that it is in.
    beyond = transform.evaluation(given, (-0.01, 0.0, 1.01, 1.0))
    np.testing.assert_array_equal(beyond, transform.evaluation(given))
    assert transform.stored(given, (0.9999, 0.5, 0.99999, 0.5001)).shape == (1, 1, 3)


@pytest.mark.parametrize(
    "box", [(0.5, 0.0, 0.5, 1.0), (0.6, 0.0, 0.4, 1.0), (0.0, 2.0, 1.0, 3.0), (float("nan"), 0, 1, 1)]
)
def test_an_empty_box_is_refused(box):
    with pytest.raises(CwpsError, match="box .* is empty"):
        Transform(8, 8).evaluation(np.zeros((20, 20, 3), np.uint8), box)


def test_large_jpegs_are_decoded_smaller_and_look_the_same(monkeypatch):
    reductions = []
    to_rgb = decode.to_rgb
    monkeypatch.setattr(
        decode,
        "to_rgb",
        lambda image, reduction=1, bits=16: (reductions.append(reduction), to_rgb(image, reduction, bits))[1],
    )
    image = Image.fromarray(places(1203, 901))
    data = encoded(image, "JPEG", quality=95, subsampling=0)
    for shorter_side, wanted in [(50, 8), (57, 4), (112, 4), (113, 2), (225, 2), (226, 1)]:
        reductions.clear()
        seen = Transform(40, shorter_side).evaluation(data).astype(int)
        assert reductions == [wanted]
        assert np.abs(seen - reference(image, shorter_side, 40, Image.Resampling.BILINEAR)).max() <= 3
    # A box is found at its place, and what it holds decides about the reduction.
    reductions.clear()
    seen = Transform(40, 40).evaluation(data, BOX).astype(int)
    expected = reference(image.crop((241, 90, 1083, 541)), 40, 40, Image.Resampling.BILINEAR)
    assert np.abs(seen - expected).max() <= 3
    assert reductions == [4]
    # A random part may be decoded down to the size that it is resized to, and stays where it was.
    monkeypatch.setattr(transforms, "random_part", lambda *_: Part(303, 207, 330, 320))
    reductions.clear()
    seen = training(Transform(40, 46, crop="random_resized"), data, None, 0).astype(int)
    expected = np.asarray(image.crop((303, 207, 633, 527)).resize((40, 40), Image.Resampling.BILINEAR))
    assert np.abs(seen - expected).max() <= 3
    assert reductions == [8]


def test_boxes_and_reductions_are_of_the_upright_image():
    image = Image.fromarray(places(1203, 901))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    turned = image.transpose(Image.Transpose.ROTATE_90)
    data = encoded(turned, "JPEG", quality=95, subsampling=0, exif=exif)
    for shorter_side in (40, 300):
        transform = Transform(40, shorter_side)
        seen = transform.evaluation(data, BOX).astype(int)
        assert np.abs(seen - transform.evaluation(np.asarray(image), BOX)).max() <= 3


def test_a_stretched_image_is_all_of_its_box_made_a_square():
    image = picture(500, 375)
    transform = Transform(64, 73, crop="stretch", flip=True)
    box = image.crop((125, 0, 375, 300))
    expected = np.asarray(box.resize((64, 64), Image.Resampling.BILINEAR))
    for given in (encoded(image, "PNG"), np.asarray(image)):
        stored = transform.stored(given, (0.25, 0.0, 0.75, 0.8))
        for seen in (transform.evaluation(given, (0.25, 0.0, 0.75, 0.8)), transform.evaluation(stored)):
            np.testing.assert_array_equal(seen, expected)
        seen = {training(transform, stored, None, seed).tobytes() for seed in range(20)}
        assert seen == {expected.tobytes(), np.ascontiguousarray(expected[:, ::-1]).tobytes()}
    assert transform.stored_as != Transform(64, 73).stored_as


def sampled(pixels: np.ndarray, size: int) -> np.ndarray:
    """Returns bilinear samples at the middles of size x size cells, as the textbook has them."""
    for axis in (0, 1):
        length = pixels.shape[axis]
        places = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
        first = np.minimum(places.astype(int), length - 2)
        share = np.expand_dims(places - first, [one for one in range(3) if one != axis])
        low, high = (np.take(pixels, first + step, axis) for step in (0, 1))
        pixels = low * (1 - share) + high * share
    return pixels


@pytest.mark.parametrize(
    ("part", "reference"),
    [
        (Part(33, 57, 40, 50), lambda part: np.asarray(part.resize((64, 64), Image.Resampling.BILINEAR))),
        (Part(33, 57, 100, 127), lambda part: sampled(np.asarray(part, float), 64)),
        (Part(33, 57, 192, 256), lambda part: np.asarray(part.reduce((3, 4)))),
    ],
    ids=["enlarged", "a little smaller", "much smaller"],
)
def test_a_random_part_is_that_part_of_the_image_at_the_models_size(monkeypatch, part, reference):
    image = picture(500, 375)
    transform = Transform(64, 73, crop="random_resized")
    monkeypatch.setattr(transforms, "random_part", lambda *_: part)
    expected = reference(image.crop((part.left, part.top, part.left + part.width, part.top + part.height)))
    for given in (encoded(image, "PNG"), np.asarray(image)):
        seen = training(transform, given, None, 0)
        assert np.abs(seen - np.asarray(expected, float)).max() <= 1


def test_random_parts_have_the_areas_and_aspects_that_were_asked_for():
    rng = np.random.default_rng(0)
    parts = np.array([random_part(1000, 1000, (0.2, 0.4), rng.random((10, 4))) for _ in range(4000)])
    left, top, width, height = parts.T
    area, aspect = width * height / 1e6, np.log(width / height) / np.log(4 / 3)
    assert 0.199 < area.min() < 0.202 and 0.398 < area.max() < 0.401
    assert -1.01 < aspect.min() < -0.98 and 0.98 < aspect.max() < 1.01
    # Uniform: the quartiles are where they should be, within four standard deviations of 4,000 draws.
    np.testing.assert_allclose(np.quantile(area, (0.25, 0.5, 0.75)), (0.25, 0.3, 0.35), atol=0.0064)
    np.testing.assert_allclose(np.quantile(aspect, (0.25, 0.5, 0.75)), (-0.5, 0, 0.5), atol=0.064)
    for first, side in ((left, width), (top, height)):
        place = first / (1000 - side)
        assert place.min() >= 0 and place.max() <= 1
        np.testing.assert_allclose(np.quantile(place, (0.25, 0.5, 0.75)), (0.25, 0.5, 0.75), atol=0.032)


@pytest.mark.parametrize("size", [*SIZES, (3, 2), (20, 800)], ids=str)
def test_random_parts_lie_inside_and_reach_every_place(size):
    width, height = size
    covered = np.zeros((height, width), bool)
    rng = np.random.default_rng(1)
    for _ in range(6000):
        left, top, wide, high = random_part(width, height, (0.01, 0.2), rng.random((10, 4)))
        assert left >= 0 and top >= 0 and wide >= 1 and high >= 1
        assert left + wide <= width and top + high <= height
        covered[top : top + high, left : left + wide] = True
    assert covered.mean() > 0.99
    assert covered[0].any() and covered[-1].any() and covered[:, 0].any() and covered[:, -1].any()


def test_the_middle_is_taken_where_no_part_fits():
    draws = np.full((10, 4), 0.999)
    assert random_part(800, 20, (1.0, 1.0), draws) == (386, 0, 27, 20)
    assert random_part(20, 800, (1.0, 1.0), draws) == (0, 386, 20, 27)
    assert random_part(110, 100, (1.0, 1.0), draws) == (0, 0, 110, 100)


def test_random_crops_are_squares_of_the_resized_image_at_every_place():
    pixels = places(251, 73)
    seen = set()
    transform = Transform(64, 73, crop="random")
    for seed in range(1500):
        drawn = training(transform, pixels, None, seed)
        left = int(drawn[0, 0, 0])
        top = int(np.flatnonzero(pixels[:, 0, 1] == drawn[0, 0, 1])[0])
        np.testing.assert_array_equal(drawn, pixels[top : top + 64, left : left + 64])
        seen.add((left, top))
    assert {left for left, _ in seen} == set(range(251 - 64 + 1))
    assert {top for _, top in seen} == set(range(73 - 64 + 1))


def test_half_of_the_images_are_mirrored_exactly():
    pixels = np.asarray(picture(90, 70))
    transform = Transform(64, 64, flip=True)
    plain, flips = transform.evaluation(pixels), 0
    for seed in range(600):
        drawn = training(transform, pixels, None, seed)
        mirror = np.array_equal(drawn, plain[:, ::-1])
        assert mirror or np.array_equal(drawn, plain)
        flips += mirror
    assert 250 < flips < 350


EVERYTHING = Transform(48, 55, "bicubic", "random_resized", (0.1, 1.0), True, (0.4, 0.4, 0.4, 0.1), 2, 9.0)


def test_the_same_draws_give_the_same_pixels():
    data = encoded(picture(300, 200), "JPEG")
    drawn = [training(EVERYTHING, data, BOX, [3, seed]) for seed in range(12)]
    again = [training(EVERYTHING, data, BOX, [3, seed]) for seed in reversed(range(12))][::-1]
    np.testing.assert_array_equal(drawn, again)
    assert len({one.tobytes() for one in drawn}) == 12
    assert all(one.dtype == np.uint8 and one.shape == (48, 48, 3) for one in drawn)


def test_an_option_does_not_change_what_another_draws(monkeypatch):
    pixels = np.asarray(picture(300, 200))
    without = [training(dataclasses.replace(EVERYTHING, flip=False), pixels, None, seed) for seed in range(8)]
    with_flip = [training(EVERYTHING, pixels, None, seed) for seed in range(8)]
    assert 0 < sum(map(np.array_equal, without, with_flip)) < 8  # those that were not mirrored
    monkeypatch.setattr(augmentation, "OPERATIONS", {"identity": lambda image, level: image})
    crop_only = Transform(48, 55, "bicubic", "random_resized", (0.1, 1.0))
    jitter = dataclasses.replace(crop_only, color_jitter=(0.4, 0.4, 0.4, 0.1))
    for seed in range(8):
        draw = lambda transform, seed=seed: training(transform, pixels, None, seed)
        cropped, jittered = draw(crop_only), draw(jitter)
        np.testing.assert_array_equal(draw(dataclasses.replace(crop_only, randaugment_layers=2)), cropped)
        np.testing.assert_array_equal(draw(dataclasses.replace(jitter, randaugment_layers=2)), jittered)
        mirrored = draw(dataclasses.replace(crop_only, flip=True))
        assert any(np.array_equal(mirrored, one) for one in (cropped, cropped[:, ::-1]))
        assert not np.array_equal(jittered, cropped)


@pytest.mark.parametrize("crop", ["center", "random"])
@pytest.mark.parametrize("size", [*SIZES, (1203, 901), (56, 55), (3000, 30)], ids=str)
@pytest.mark.parametrize("box", [None, BOX], ids=["whole", "box"])
def test_a_stored_image_gives_the_same_pixels(size, crop, box):
    data = encoded(picture(*size), "JPEG")
    transform = Transform(48, 55, "bicubic", crop, flip=True, color_jitter=(0.4, 0.4, 0.4, 0.1))
    stored = transform.stored(data, box)
    assert min(stored.shape[:2]) <= 55 and max(stored.shape[:2]) <= 64 * 55
    np.testing.assert_array_equal(transform.evaluation(stored), transform.evaluation(data, box))
    np.testing.assert_array_equal(transform.stored(stored), stored)
    for seed in range(3):
        expected = training(transform, data, box, seed)
        np.testing.assert_array_equal(training(transform, stored, None, seed), expected)


def test_a_stored_image_is_the_whole_image_and_never_enlarged():
    transform = Transform(48, 55)
    image = picture(300, 200)
    np.testing.assert_array_equal(
        transform.stored(encoded(image, "PNG")), image.resize((82, 55), Image.Resampling.BILINEAR)
    )
    small = picture(90, 41)
    np.testing.assert_array_equal(transform.stored(encoded(small, "PNG")), small)
    assert transform.stored_as != Transform(48, 56).stored_as != Transform(48, 56, "bicubic").stored_as


def test_a_line_of_a_million_pixels_does_not_fill_the_memory():
    line = np.zeros((1, 1_000_000, 3), np.uint8)
    line[:, 499_000:501_000] = 200
    for pixels in (line, line.transpose(1, 0, 2)):
        transform = Transform(48, 55, crop="random_resized")
        assert transform.stored(pixels).size < 1000
        assert (transform.evaluation(pixels) == 200).all()
        assert training(transform, pixels, None, 0).shape == (48, 48, 3)


@pytest.mark.parametrize("crop", ["center", "random", "random_resized"])
def test_grey_arrays_become_rgb(crop):
    grey = np.asarray(picture(90, 70))[:, :, 0]
    rgb = np.stack([grey] * 3, axis=2)
    for shorter_side in (48, 70):  # resized, and cut only
        transform = Transform(48, shorter_side, crop=crop, flip=True)
        for given in (grey, grey[:, :, None]):
            np.testing.assert_array_equal(transform.evaluation(given), transform.evaluation(rgb))
            np.testing.assert_array_equal(transform.stored(given), transform.stored(rgb))
            drawn = training(transform, given, None, 5)
            np.testing.assert_array_equal(drawn, training(transform, rgb, None, 5))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros((8, 8, 3), np.int32),
    ],
    ids=lambda array: f"{array.shape} {array.dtype}",
)
def test_an_array_that_is_not_an_image_is_refused(array):
    with pytest.raises(CwpsError, match=f"an array .* of {array.dtype}: give uint8"):
        Transform(8, 8).evaluation(array)
