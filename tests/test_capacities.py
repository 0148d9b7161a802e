"""Tasks with several numbers of own channels share programs, and narrow ones are not padded to wide ones."""

import importlib
import itertools
import pathlib
import sys

import jax
import numpy as np
import pytest
from methods_shared import images_of

import cwps_jax as cwps
from cwps_jax import models
from cwps_jax.bank import Bank
from cwps_jax.bank.capacities import Capacities
from cwps_jax.core.compact import SLACK
from cwps_jax.core.trees import unflatten

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "benchmarks"))
synthetic = importlib.import_module("synthetic")

SHAPE = (1, 16, 16, 3)
SHARES = {"a": 0.1, "b": 0.3, "c": 0.2, "d": 0.25}


@pytest.fixture(scope="module")
def layout():
    return cwps.channel_layout(models.create("resnet8", 3), jax.ShapeDtypeStruct(SHAPE, np.float32))


def counts_of(layout, share: float, rng) -> dict[str, int]:
    """Returns about a share of each layer's channels, as a search finds them: not the same in every layer."""
    return {
        layer.path: max(1, min(layer.channels, round(share * rng.uniform(0.7, 1.3) * layer.channels)))
        for layer in layout.layers
    }


def work(layout, capacity) -> float:
    rows = zip(layout.layers, capacity, strict=True)
    return sum(columns * layer.channel_parameters for layer, columns in rows)


def test_tasks_that_come_together_share_one_capacity_unless_it_is_too_wide(layout):
    rng = np.random.default_rng(0)
    some = [counts_of(layout, 0.2, rng) for _ in range(20)] + [counts_of(layout, 2.0, rng)]
    assert len(set(Capacities(layout).of_all(some[:-1]))) == 1
    with_a_whole_network = Capacities(layout).of_all(some)
    everything = work(layout, with_a_whole_network[-1])
    assert len(set(with_a_whole_network)) <= 4
    for counts, capacity in zip(some, with_a_whole_network, strict=True):
        assert all(
            columns >= counts[layer.path] for layer, columns in zip(layout.layers, capacity, strict=True)
        )
        alone = work(layout, Capacities(layout).of(counts))
        assert work(layout, capacity) <= alone + SLACK * everything


def test_a_batch_runs_with_a_capacity_that_is_there_if_one_covers_its_tasks(layout):
    capacities, rng = Capacities(layout), np.random.default_rng(1)
    narrow, wide = (capacities.of(counts_of(layout, share, rng)) for share in (0.1, 0.8))
    assert capacities.covering([narrow, wide, narrow]) == wide != narrow
    assert capacities.covering([narrow]) == narrow
    assert capacities.covering([(), narrow]) == narrow  # one is not loaded
    assert capacities.covering([()]) == capacities.covering([]) == ()


def test_any_tasks_may_be_mixed_with_the_programs_of_any_others(layout, tmp_path):
    model, rng = models.create("resnet8", 3), np.random.default_rng(2)
    variables = jax.device_get(jax.jit(model.init)(jax.random.key(0), np.zeros(SHAPE)))
    pool = cwps.Pool.create(tmp_path / "pool", variables, layout, backbone="resnet8")
    for name, share in SHARES.items():
        counts = counts_of(layout, share, rng)
        opened = {
            layer.path: (rng.permutation(layer.channels) < counts[layer.path]).reshape(layer.gate_shape)
            for layer in layout.layers
        }
        gates = unflatten(opened)
        child = synthetic.moved(variables["params"], rng)
        mixed = jax.device_get(cwps.mix(variables["params"], child, gates))
        own = {key: tree for key, tree in variables.items() if key != "params"}
        pool.add(name, mixed, own, gates, {}, ("pretrained",), {})
    bank, images = Bank(pool), images_of(2, 0, 16).repeat(3, axis=-1)
    bank.answer(images, ["a", "b"], "mixed")
    pairs = list(itertools.combinations_with_replacement(SHARES, 2))
    with synthetic.CountCompilations() as counted:
        answers = {pair: bank.answer(images, pair, "mixed") for pair in pairs}
    assert counted.names == []
    for (first, second), (one, two) in answers.items():
        np.testing.assert_allclose(one, bank.answer(images[:1], first, "swapped")[0], atol=1e-4)
        np.testing.assert_allclose(two, bank.answer(images[1:], second, "swapped")[0], atol=1e-4)
