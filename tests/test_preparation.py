"""Preparation on the device: against NumPy and by hand; mixing conserves pixels and labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cwps_jax.config import DataConfig
from cwps_jax.data.preparation import Preparation, blended, swap_pairs
from cwps_jax.errors import CwpsError

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MIXUP = Preparation(MEAN, DEVIATION, mixup=0.8)
CUTMIX = Preparation(MEAN, DEVIATION, cutmix=1.0)
BOTH = Preparation(MEAN, DEVIATION, mixup=0.2, cutmix=1.0)
blend = jax.jit(Preparation.blend, static_argnums=0)
# Whether an image's pixels are its own, from images of ones and zeros in pairs.
PAIRS = np.broadcast_to(np.array([1.0, 0.0], np.float32)[:, None, None, None], (2, 24, 31, 1))


def batch_of(count, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.standard_normal((count, 24, 31, 3)).astype(np.float32),
        "label": rng.integers(0, 5, count).astype(np.int32),
    }


def test_normalise_is_numpys():
    images = np.arange(256, dtype=np.uint8).repeat(3).reshape(4, 8, 8, 3)
    expected = (images / 255.0 - np.array(MEAN)) / np.array(DEVIATION)
    seen = jax.jit(MIXUP.normalise)(images)
    assert seen.dtype == jnp.float32
    np.testing.assert_allclose(seen, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
def test_without_a_mean_images_pass_unchanged(dtype):
    images = jnp.asarray(batch_of(2)["image"], dtype)
    assert Preparation().normalise(images) is images
    assert Preparation(mixup=0.2).normalise(images) is images


@pytest.mark.parametrize(
    ("preparation", "images", "message"),
    [
        (MIXUP, np.zeros((2, 4, 4, 1), np.uint8), "images have 1 channels, the mean 3"),
        (MIXUP, np.zeros((2, 4, 4, 3), np.int32), "images are int32: give uint8"),
        (MIXUP, np.zeros((2, 4, 4, 3), np.float32), "images are float32: give uint8"),
    ],
)
def test_images_that_cannot_be_normalised_are_refused(preparation, images, message):
    with pytest.raises(CwpsError, match=message):
        preparation.normalise(images)


def test_what_a_config_asks_for():
    settings = DataConfig(mixup=0.2, cutmix=1.0)
    assert Preparation.of(settings) == BOTH
    assert hash(Preparation.of(settings)) == hash(BOTH)
    assert [one.group for one in (MIXUP, CUTMIX, BOTH, Preparation(MEAN, DEVIATION))] == [2, 2, 2, 1]


def test_without_mixing_a_batch_is_itself():
    batch = batch_of(3)
    assert Preparation(MEAN, DEVIATION).blend(batch, jax.random.key(0)) is batch


def test_mixup_is_a_weighted_mean_of_neighbours():
    batch = batch_of(8)
    shares = []
    for seed in range(5):
        seen = blend(MIXUP, batch, jax.random.key(seed))
        share = float(seen["share"][0])
        shares.append(share)
        assert seen["share"].shape == (8,) and seen["share"].dtype == jnp.float32
        assert (seen["share"] == share).all()
        for own, partner in ((0, 1), (1, 0), (6, 7), (7, 6)):
            expected = share * batch["image"][own] + (1 - share) * batch["image"][partner]
            np.testing.assert_allclose(seen["image"][own], expected, atol=1e-6)
        np.testing.assert_array_equal(seen["label"], batch["label"])
        sums = np.asarray(seen["image"]).reshape(4, 2, -1).sum(1)
        np.testing.assert_allclose(sums, batch["image"].reshape(4, 2, -1).sum(1), atol=2e-6)
    assert len(set(shares)) == 5


def test_cutmix_is_a_rectangle_of_the_partner_with_its_true_share():
    cut_at_border = 0
    for seed in range(60):
        seen = blend(CUTMIX, {"image": PAIRS}, jax.random.key(seed))
        own = np.asarray(seen["image"][0, :, :, 0])
        assert set(np.unique(own)) <= {0.0, 1.0}
        np.testing.assert_array_equal(seen["image"][1, :, :, 0], 1 - own)
        assert seen["share"][0] == np.float32(own.sum()) / np.float32(own.size)
        rows, columns = np.nonzero(own == 0)
        if rows.size:
            box = own[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert not box.any()
            cut_at_border += rows.min() == 0 or columns.min() == 0
    assert cut_at_border > 5


def test_cutmix_takes_a_rectangle_of_the_images_shape():
    sides = [
        (int((seen[:, 15] == 0).sum()), int((seen[12] == 0).sum()))
        for seed in range(200)
        for seen in [np.asarray(blend(CUTMIX, {"image": PAIRS}, jax.random.key(seed))["image"][0, :, :, 0])]
        if not (seen[0] == 0).any()
        and not (seen[-1] == 0).any()
        and not (seen[:, 0] == 0).any()
        and not (seen[:, -1] == 0).any()
        and seen[12, 15] == 0
    ]
    assert len(sides) > 10
    assert all(abs(height / 24 - width / 31) < 2 / 24 for height, width in sides)


def shares(preparation, count=4000):
    one = lambda key: preparation.blend({"image": jnp.zeros((2, 64, 64, 1))}, key)["share"][0]
    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(7), count)))


def test_shares_follow_their_beta_distribution():
    drawn = shares(MIXUP)
    variance = 1 / (4 * (2 * 0.8 + 1))  # of Beta(0.8, 0.8), whose mean is a half
    np.testing.assert_allclose(drawn.mean(), 0.5, atol=4 * np.sqrt(variance / len(drawn)))
    np.testing.assert_allclose(drawn.var(), variance, rtol=0.08)
    # A square of side r around any point has (r - r^2 / 4)^2 inside; r^2 is uniform: 0.3208 in the mean.
    np.testing.assert_allclose(shares(CUTMIX).mean(), 1 - 0.3208, atol=0.025)
    # Of both, only mixup's Beta(0.2, 0.2) gives shares that are almost nothing or all.
    few = (np.random.default_rng(0).beta(0.2, 0.2, 100_000) < 0.1).mean() / 2
    both = shares(Preparation(mixup=0.2, cutmix=50.0))
    np.testing.assert_allclose(((both < 0.1).mean(), (both > 0.9).mean()), few, atol=0.03)


def test_with_both_a_coin_decides_for_each_step():
    batch = {"image": PAIRS}
    cut = [
        set(np.unique(blend(BOTH, batch, jax.random.key(seed))["image"])) <= {0.0, 1.0} for seed in range(100)
    ]
    assert 30 < sum(cut) < 70


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_are_mixed_as_the_whole(parts):
    batch = batch_of(16)
    for seed in range(6):  # the coin falls on either side
        key = jax.random.key(seed)
        whole = blend(BOTH, batch, key)
        for number in range(parts):
            rows = slice(number * 16 // parts, (number + 1) * 16 // parts)
            part = blend(BOTH, {name: array[rows] for name, array in batch.items()}, key)
            for name in whole:
                np.testing.assert_array_equal(part[name], whole[name][rows])


def test_a_sharded_batch_is_mixed_without_communication():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    batch, key = batch_of(16), jax.random.key(3)
    sharded = jax.device_put(batch, sharding)
    compiled = blend.lower(BOTH, sharded, key).compile()
    program = compiled.as_text()
    for collective in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
        assert collective not in program
    seen = blend(BOTH, sharded, key)
    assert seen["image"].sharding.is_equivalent_to(sharding, 4)
    np.testing.assert_allclose(seen["image"], blend(BOTH, batch, key)["image"], atol=1e-6)


def test_pmap_mixes_the_same():
    batch, key = batch_of(16), jax.random.key(3)
    split = jax.tree.map(lambda array: array.reshape(8, 2, *array.shape[1:]), batch)
    seen = jax.pmap(BOTH.blend, in_axes=(0, None))(split, key)
    whole = blend(BOTH, batch, key)
    for name in whole:
        np.testing.assert_allclose(np.asarray(seen[name]).reshape(whole[name].shape), whole[name], atol=1e-6)


def test_new_keys_do_not_compile_again():
    traced = []
    program = jax.jit(lambda *of: (traced.append(1), Preparation.blend(*of))[1], static_argnums=0)
    seen = []
    for seed in range(4):
        equal = Preparation(MEAN, DEVIATION, mixup=0.2, cutmix=1.0)
        seen.append(float(program(equal, batch_of(16, seed), jax.random.key(seed))["share"][0]))
    assert len(traced) == 1 and len(set(seen)) == 4


def test_mixing_keeps_types_under_strict_promotion():
    batch = {"image": jnp.ones((2, 4, 4, 3), jnp.bfloat16)}
    with jax.numpy_dtype_promotion("strict"):
        seen = jax.eval_shape(BOTH.blend, batch, jax.random.key(0))
    assert (seen["image"].dtype, seen["share"].dtype) == (jnp.bfloat16, jnp.float32)


def squared(outputs, batch):
    return (outputs - batch["label"]) ** 2 * batch["scale"]


def test_the_loss_of_a_mixed_batch_by_hand():
    batch = {
        "image": jnp.zeros((4, 2, 2, 1)),
        "label": jnp.array([1.0, 2.0, 3.0, 5.0]),
        "scale": jnp.array([1.0, 10.0, 1.0, 1.0]),
        "share": jnp.full(4, 0.75),
    }
    outputs = jnp.array([0.0, 0.0, 3.0, 3.0])
    expected = [0.75 * 1 + 0.25 * 40, 0.75 * 40 + 0.25 * 1, 0.25 * 4, 0.75 * 4]
    np.testing.assert_allclose(blended(squared)(outputs, batch), expected, rtol=1e-6)
    del batch["share"]
    np.testing.assert_array_equal(blended(squared)(outputs, batch), squared(outputs, batch))


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(CwpsError, match="normalise them before"):
        MIXUP.blend({"image": np.zeros((2, 4, 4, 3), np.uint8)}, jax.random.key(0))
    with pytest.raises(CwpsError, match="3 items per device must be an even number"):
        blend(MIXUP, batch_of(3), jax.random.key(0))
    np.testing.assert_array_equal(swap_pairs(np.arange(6)), [1, 0, 3, 2, 5, 4])
