"""What a task keeps: its packed rows, and how they are counted."""

import math

import jax
import numpy as np
import pytest
import zoo

from cwps_jax.core import accounting, budgets, masks
from cwps_jax.core.packing import pack
from cwps_jax.core.trees import flatten
from cwps_jax.report.rows import totals


def assert_same_bits(ours, theirs):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes())


@pytest.mark.parametrize("name", zoo.KINDS)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_exactly_the_open_channels_are_packed_in_their_order(name, share):
    layout = zoo.layout(name)
    child, gates = jax.device_get((zoo.random_params(layout, 0), zoo.random_gates(layout, 2, share)))
    packed = pack(layout, child, gates)
    assert packed.keys() == set(layout.layer_paths)
    for layer in layout.layers:
        is_open = np.ravel(flatten(gates)[layer.path])
        for leaf in layer.leaves:
            assert_same_bits(packed[leaf], zoo.kernel_channels(layer, leaf, flatten(child)[leaf])[is_open])


@pytest.mark.parametrize("name", ["conv", "scanned", "attention", "dense_general_of_each_item"])
def test_counts_are_what_lies_in_the_arrays(name):
    layout = zoo.layout(name)
    params, gates = jax.device_get((zoo.random_params(layout, 0), zoo.random_gates(layout, 1, 0.3)))
    counted = accounting.count(layout, gates)
    assert counted.active == sum(rows.size for rows in pack(layout, params, gates).values())
    flat = flatten(params)
    assert counted.private == sum(flat[path].size for path in layout.private_paths)
    assert counted.backbone == sum(leaf.size for leaf in flat.values())
    np.testing.assert_allclose(counted.ratio, budgets.params_ratio(gates, layout), rtol=1e-6)


def test_the_head_is_counted_apart(tiny_layout):
    closed = accounting.count(tiny_layout, masks.all_gates(tiny_layout, False))
    # Norm 2 * 6; head 8 * 3 + 3; conv1 3 * 3 * 6 without bias; conv2 3 * 3 * 6 * 8 + 8.
    assert closed == accounting.Count(active=0, private=12, head=27, backbone=12 + 54 + 440)
    assert closed.ratio == 12 / 506
    whole = accounting.count(tiny_layout, masks.all_gates(tiny_layout, True))
    assert (whole.active, whole.ratio) == (494, 1.0)


def test_the_total_is_the_backbone_and_all_that_is_kept(tiny_layout):
    counts = [accounting.count(tiny_layout, zoo.random_gates(tiny_layout, seed)) for seed in range(3)]
    kept = sum(counted.active + 12 for counted in counts)
    row = lambda ratio: {"method": "any", "draw": 0, "params_ratio": ratio, "bytes": 10}
    (total,) = totals([row(one.ratio) for one in counts])
    assert total["params_ratio"] == pytest.approx(1 + kept / 506) and total["bytes"] == 30
    # As TAPS counts: fine-tuning two tasks costs three networks.
    whole = accounting.count(tiny_layout, masks.all_gates(tiny_layout, True))
    assert totals(2 * [row(whole.ratio)])[0]["params_ratio"] == 3.0


@pytest.mark.parametrize("name", ["scanned", "attention"])
def test_relations_are_shares_by_parameters_and_sum_to_one(name):
    layout = zoo.layout(name)
    rng = np.random.default_rng(0)
    names = ["pretrained", "birds@1", "nobody@1", "cars@1"]
    owners = {layer.path: rng.choice([0, 1, 3], layer.channels) for layer in layout.layers}
    row = accounting.relation(accounting.owned(layout, owners), dict(enumerate(names)))
    weight = dict.fromkeys(names, 0)
    for layer in layout.layers:
        size = sum(math.prod(shape) for shape in layer.shapes) // layer.channels
        for owner in owners[layer.path]:
            weight[names[owner]] += size
    assert "nobody@1" not in row
    assert sum(row.values()) == pytest.approx(1)
    for one, share in row.items():
        assert share == pytest.approx(weight[one] / sum(weight.values()))


def test_relations_weigh_channels_by_what_they_cost(tiny_layout):
    # All 6 channels of conv1 (9 each) from one owner, all 8 of conv2 (55 each) from another.
    owners = {"conv1/kernel": np.zeros((1, 1, 1, 6), int), "conv2/kernel": np.ones(8, int)}
    row = accounting.relation(accounting.owned(tiny_layout, owners), {0: "pretrained", 1: "birds"})
    assert row == {"pretrained": pytest.approx(54 / 494), "birds": pytest.approx(440 / 494)}
    matrix = accounting.relation_matrix(
        {"cars": row, "birds": {"birds": 1.0}}, ["birds", "pretrained", "cars"]
    )
    np.testing.assert_allclose(matrix, [[440 / 494, 54 / 494, 0], [1, 0, 0]])
