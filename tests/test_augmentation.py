"""RandAugment's operations and colour jitter: against NumPy, and what strength 0 and full strength do."""

import numpy as np
import pytest
from PIL import Image

from cwps_jax.data import augmentation
from cwps_jax.data.augmentation import FILL, OPERATIONS, color_jitter, randaugment


@pytest.fixture(scope="module")
def picture():
    coarse = np.random.default_rng(0).integers(40, 210, (36, 48, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((96, 72), Image.Resampling.BICUBIC)


def changed(picture, name, level):
    return np.asarray(OPERATIONS[name](picture, level)).astype(int)


def order(*changes):
    """Draws that put these changes of the colours in this order; the strengths' draws are 1 - 2^-30."""
    return np.array([1 - 2**-30] * 4 + [changes.index(change) / 8 for change in range(4)])


def test_there_are_the_papers_fourteen():
    assert len(OPERATIONS) == 14


@pytest.mark.parametrize("name", OPERATIONS)
def test_magnitude_0_changes_nothing_and_10_does(picture, name):
    before = np.asarray(picture).astype(int)
    fixed = name in ("identity", "autocontrast", "equalize")  # these have no magnitude
    for level in (1.0, -1.0):
        after = changed(picture, name, level)
        assert after.shape == before.shape
        assert (np.abs(after - before).mean() > 1) == (name != "identity"), name
        if fixed:
            np.testing.assert_array_equal(after, changed(picture, name, 0.1))
    if not fixed:
        np.testing.assert_array_equal(changed(picture, name, 0.0), before)
        half, full = changed(picture, name, 0.5), changed(picture, name, 1.0)
        assert (half != before).any() and (half != full).any()


def test_operations_against_numpy(picture):
    pixels = np.asarray(picture).astype(int)
    for level, bits, threshold in ((1.0, 4, 0), (0.5, 6, 128), (-0.9, 4, 26)):
        np.testing.assert_array_equal(
            changed(picture, "posterize", level), pixels >> (8 - bits) << (8 - bits)
        )
        solarized = np.where(pixels < threshold, pixels, 255 - pixels)
        np.testing.assert_array_equal(changed(picture, "solarize", level), solarized)
    grey = np.asarray(picture.convert("L")).astype(int)[:, :, None]
    for level in (0.9, -0.9):
        factor = 1 + 0.9 * level
        for name, ground in (("brightness", 0), ("contrast", round(grey.mean())), ("color", grey)):
            expected = np.clip(ground + factor * (pixels - ground), 0, 255)
            assert np.abs(changed(picture, name, level) - expected).max() <= 1.01, name
    low, high = pixels.min((0, 1)), pixels.max((0, 1))
    stretched = (pixels - low) * 255 / (high - low)
    assert np.abs(changed(picture, "autocontrast", 1.0) - stretched).max() <= 1.01
    ranks = np.sort(changed(picture, "equalize", 1.0)[:, :, 0].ravel())
    assert np.abs(ranks - np.linspace(0, 255, ranks.size)).max() < 12  # equally many pixels of every value


def test_pictures_move_as_far_as_they_should():
    side = 331
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[:, :, 0] = np.arange(side) // 2  # two pixels a level, so that halves can be told apart
    pixels[:, :, 1] = np.arange(side)[:, None] // 2
    image, inner = Image.fromarray(pixels), slice(120, 200)
    right = changed(image, "translate_x", -1.0)
    np.testing.assert_array_equal(right[:, 150:], pixels[:, : side - 150])
    np.testing.assert_array_equal(right[:, :150], np.broadcast_to(FILL, (side, 150, 3)))
    np.testing.assert_array_equal(changed(image, "translate_y", 1.0)[: side - 150], pixels[150:])
    rows, columns = np.mgrid[inner, inner]
    for name, channel, expected in (
        ("shear_x", 0, columns - 0.3 * rows),
        ("shear_y", 1, rows - 0.3 * columns),
        ("rotate", 0, 165 + (columns - 165) * np.cos(np.pi / 6) + (rows - 165) * np.sin(np.pi / 6)),
    ):
        moved = changed(image, name, -1.0)[inner, inner, channel]
        assert np.abs(2 * moved - expected).max() < 3, name


def test_randaugment_draws_every_operation_in_both_directions(monkeypatch, picture):
    calls = []
    for name in OPERATIONS:
        recorder = lambda image, level, name=name: (calls.append((name, round(level, 6))), image)[1]
        monkeypatch.setitem(augmentation.OPERATIONS, name, recorder)
    randaugment(picture, 9.0, np.random.default_rng(0).random((4200, 2)))
    assert len(calls) == 4200
    for name in OPERATIONS:
        for level in (0.9, -0.9):
            assert 100 < calls.count((name, level)) < 200  # 150 expected
    assert randaugment(picture, 9.0, np.empty((0, 2))) is picture


def test_randaugment_applies_its_operations_one_after_the_other(picture):
    names = list(OPERATIONS)
    draws = [((names.index(name) + 0.5) / 14, 0.2) for name in ("translate_x", "solarize")]
    expected = OPERATIONS["solarize"](OPERATIONS["translate_x"](picture, 0.7), 0.7)
    np.testing.assert_array_equal(randaugment(picture, 7.0, np.array(draws)), expected)
    np.testing.assert_raises(
        AssertionError,
        np.testing.assert_array_equal,
        randaugment(picture, 7.0, np.array(draws[::-1])),
        expected,
    )


def test_jitter_of_strength_0_is_the_picture(picture):
    assert color_jitter(picture, (0.0, 0.0, 0.0, 0.0), np.random.default_rng(0).random(8)) is picture


def test_jitter_draws_its_factors_from_the_whole_range(picture):
    grey = Image.new("RGB", (4, 4), (100, 100, 100))
    rng, seen = np.random.default_rng(0), []
    for strength, low, high in ((0.4, 60, 140), (1.5, 0, 250)):
        seen = [
            np.asarray(color_jitter(grey, (strength, 0.0, 0.0, 0.0), rng.random(8)))[0, 0, 0]
            for _ in range(500)
        ]
        assert low <= min(seen) < low + 5 and high - 5 < max(seen) <= high
        np.testing.assert_allclose(np.mean(seen), (low + high) / 2, atol=0.026 * (high - low) * 2)


def test_jitter_changes_in_the_order_that_was_drawn():
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0], pixels[1] = 60, 180  # mean 120
    image = Image.fromarray(pixels)
    strengths = (0.5, 0.5, 0.0, 0.0)
    # Brightness first: 90 and 255 (of 270), mean 172.5 -> 173. Contrast first: 30 and 210, then 45 and 255.
    first = np.asarray(color_jitter(image, strengths, order(0, 1, 2, 3)))
    np.testing.assert_allclose(first[:, 0, 0], (173 - 1.5 * 83, 255), atol=1)
    second = np.asarray(color_jitter(image, strengths, order(3, 2, 1, 0)))
    np.testing.assert_allclose(second[:, 0, 0], (45, 255), atol=1)


def test_saturation_and_hue():
    red = Image.new("RGB", (2, 2), (200, 40, 40))
    luma = np.asarray(red.convert("L"))[0, 0]
    draws = order(0, 1, 2, 3)
    draws[2] = 0.0
    assert np.ptp(np.asarray(color_jitter(red, (0.0, 0.0, 1.0, 0.0), draws))[0, 0]) == 0
    np.testing.assert_allclose(np.asarray(color_jitter(red, (0.0, 0.0, 1.0, 0.0), draws))[0, 0], luma, atol=1)
    third = color_jitter(red, (0.0, 0.0, 0.0, 1 / 3), order(0, 1, 2, 3))
    np.testing.assert_allclose(np.asarray(third)[0, 0], (40, 200, 40), atol=5)
    draws[3] = 0.0
    back = color_jitter(red, (0.0, 0.0, 0.0, 1 / 3), draws)
    np.testing.assert_allclose(np.asarray(back)[0, 0], (40, 40, 200), atol=5)  # hue has 256 levels
