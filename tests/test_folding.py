"""Norm statistics in scales and biases: the same function, fewer bytes, and none if rounding spoils it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import numpy as np
import pytest
from methods_shared import CONFIG, task, tiny

import cwps_jax as cwps
from cwps_jax import models
from cwps_jax.core.coding import encoded
from cwps_jax.core.folding import MOST_ERROR, folded, largest_error
from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.methods.network import Network
from cwps_jax.modules import channel_layout
from cwps_jax.store import contents

CODED = {"method": "finetune", "row_bits": 0, "byte_budget": 0.2}
MEAN, VARIANCE = "other/batch_stats/norm/mean", "other/batch_stats/norm/var"


def random_norm(rng: np.random.Generator, channels: int = 64) -> dict[str, np.ndarray]:
    draw = {
        "params/norm/scale": rng.normal(0.5, 0.3, channels),
        "params/norm/bias": rng.normal(0, 0.3, channels),
        MEAN: rng.normal(0, 0.5, channels),
        VARIANCE: np.exp(rng.normal(-1, 0.4, channels)),
    }
    return {path: leaf.astype(np.float32) for path, leaf in draw.items()}


def as_before(own: Mapping[str, Any]) -> dict[str, Any]:
    return {path.removeprefix("other/"): leaf for path, leaf in own.items()}


def in_eight_bits(leaves: Mapping[str, np.ndarray], before: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for path, leaf in leaves.items():
        codes = encoded((leaf - before[path]).reshape(1, -1), 8, leaf.shape)
        found[path] = before[path] + codes.rows(slice(None)).reshape(leaf.shape)
    return found


def test_a_folded_norm_is_the_same_function():
    """Against `nn.BatchNorm` itself, with an epsilon that matters."""
    rng, epsilon = np.random.default_rng(0), 0.1
    own, before = random_norm(rng), as_before(random_norm(rng))
    norm = nn.BatchNorm(use_running_average=True, epsilon=epsilon)
    images = rng.normal(0.3, 2, (5, 64)).astype(np.float32)

    def outputs(leaves: Mapping[str, Any]) -> np.ndarray:
        flat = {path.replace("norm/", ""): leaf for path, leaf in leaves.items()}
        return np.asarray(norm.apply(unflatten(flat), images))

    less = folded(own, before, {"norm": epsilon})
    assert less.keys() == {"params/norm/scale", "params/norm/bias"}
    np.testing.assert_allclose(outputs({**before, **less}), outputs(as_before(own)), atol=1e-5)
    assert largest_error(own, less, before, {"norm": epsilon}) < 1e-5
    assert largest_error(own, in_eight_bits(less, before), before, {"norm": epsilon}) < MOST_ERROR


def test_the_error_is_the_largest_one_of_the_outputs():
    rng, epsilons = np.random.default_rng(1), {"norm": 1e-5}
    own, before = random_norm(rng), as_before(random_norm(rng))
    less = folded(own, before, epsilons)
    less["params/norm/bias"][7] += 0.5
    size = np.sqrt(np.mean(own["params/norm/scale"] ** 2))
    assert largest_error(own, less, before, epsilons) == pytest.approx(0.5 / size, rel=1e-3)


def test_an_error_that_is_no_number_is_not_a_small_one():
    own = random_norm(np.random.default_rng(1))
    before, less = as_before(own), folded(own, as_before(own), {"norm": 1e-5})
    less["params/norm/bias"][0] = np.nan
    assert not largest_error(own, less, before, {"norm": 1e-5}) <= MOST_ERROR


def test_a_norm_whose_scales_are_zero_has_no_error_or_a_boundless_one():
    own = random_norm(np.random.default_rng(1))
    own["params/norm/scale"] *= 0
    before, less = as_before(own), folded(own, as_before(own), {"norm": 1e-5})
    assert largest_error(own, less, before, {"norm": 1e-5}) == 0
    less["params/norm/scale"][0] = 1e-3
    assert largest_error(own, less, before, {"norm": 1e-5}) == np.inf


@pytest.mark.parametrize("path", [VARIANCE, "params/norm/scale"])
def test_a_norm_that_a_task_does_not_have_whole_stays_as_it_is(path):
    own = random_norm(np.random.default_rng(2))
    before = as_before(own)
    del own[path]
    chex.assert_trees_all_equal(folded(own, before, {"norm": 1e-5}), own)
    assert largest_error(own, own, before, {"norm": 1e-5}) == 0


def test_a_channel_that_dies_in_a_task_would_cost_the_others_their_precision():
    """Its scale grows without a bound, and with it the step size of all scales of the norm."""
    rng, epsilons = np.random.default_rng(3), {"norm": 1e-5}
    own, before = random_norm(rng), as_before(random_norm(rng))
    own[VARIANCE][5] = 0
    less = folded(own, before, epsilons)
    assert largest_error(own, less, before, epsilons) < 1e-5
    assert largest_error(own, in_eight_bits(less, before), before, epsilons) > MOST_ERROR


@pytest.fixture(params=[False, True], ids=["folded", "not folded"])
def learned(request, tmp_path, monkeypatch):
    """A task whose bits a byte budget sets, with its exact leaves, and whether they can be folded."""
    where, exact = tiny(), []
    pool = where.new_pool(tmp_path / "pool")
    dies = request.param

    def spied(layout, stored, *given):
        if dies:
            variance = stored.own["other"]["batch_stats"]["norm"]["var"]
            stored.own["other"]["batch_stats"]["norm"]["var"] = np.where(np.arange(6) == 2, 1e-3, variance)
        exact.append(flatten(stored.own))
        return coded(layout, stored, *given)

    coded = contents.coded
    monkeypatch.setattr(contents, "coded", spied)
    config = dataclasses.replace(CONFIG, **CODED)
    found = cwps.learn_task(pool, "a", where.model, task(where.size), config=config, trainer=where.trainer)
    return where, pool, found, exact[0], not dies


def test_a_task_in_few_bytes_has_no_statistics_unless_a_fold_would_be_coarse(learned):
    where, pool, found, exact, folds = learned
    own = cwps.Pool.open(pool.folder)._trees.own(pool.version("a")).leaves
    assert (MEAN in own, VARIANCE in own) == (not folds, not folds)
    chex.assert_trees_all_equal(cwps.Pool.open(pool.folder).effective("a"), found.variables)
    count = pool.count("a")
    assert 0.85 * CODED["byte_budget"] < count.byte_ratio <= CODED["byte_budget"]
    # The function is the one that was learned, whichever statistics it has.
    stored = flatten(found.variables)
    norm = {path.removeprefix("other/"): leaf for path, leaf in exact.items() if "/norm/" in path}
    predictor, test = where.trainer.predictor(where.model), task(where.size).test
    one, other = (predictor(unflatten(leaves), test, 8) for leaves in (stored, {**stored, **norm}))
    np.testing.assert_allclose(one, other, atol=0.05 * np.abs(other).max())


def test_only_plain_batch_norms_with_scale_and_bias_fold():
    class Other(nn.BatchNorm):
        """May compute anything."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, images, train=False):
            x = nn.Conv(8, (3, 3))(images)
            for number, make in enumerate((nn.BatchNorm, Other)):
                x = make(use_running_average=not train, epsilon=0.01, name=f"norm{number}")(x)
            x = nn.BatchNorm(use_running_average=not train, use_scale=False, name="bare")(x)
            return nn.Dense(3, name="head")(x.mean((1, 2)))

    example = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32)
    network = Network(Model(), channel_layout(Model(), example), example)
    assert network.folding == {"norm0": 0.01}
    assert network.batch_norms.keys() == {"norm0", "norm1", "bare"}
    assert sorted(network.statistics) == [8] * 6 and sorted(network.unfolded_statistics) == [8] * 4


def test_every_norm_of_a_resnet_folds_and_a_transformer_has_none():
    for name, size in (("resnet8", 16), ("vit_nano4", 12)):
        model, example = models.create(name, 3), jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
        network = Network(model, channel_layout(model, example), example)
        assert len(network.folding) == len(network.statistics) / 2
        assert network.unfolded_statistics == ()
