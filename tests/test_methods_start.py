"""Every method starts from the pre-trained model, and trains nothing that its network does not read."""

import dataclasses

import chex
import jax
import numpy as np
import pytest
from methods_shared import CONFIG, effective, first_stage, noisy, pooled_in_memory, setting_of

from cwps_jax import methods
from cwps_jax.core.trees import flatten, map_with_path, unflatten

# By these a task begins elsewhere, which has tests of its own below.
ELSEWHERE = ("ssf", "packnet")
SCORES = {"masks", "switches"}


def assert_same(found, expected):
    found, expected = flatten(found), flatten(expected)
    assert found.keys() == expected.keys()
    for path in expected:
        np.testing.assert_array_equal(found[path], expected[path], err_msg=path)


@pytest.mark.parametrize("name", [name for name in methods.METHODS if name not in ELSEWHERE])
def test_a_task_starts_as_the_pretrained_model_to_the_bit(name):
    where = setting_of(name)
    stage, begun = first_stage(methods.METHODS[name](), where.moment())
    assert_same(effective(stage, begun.own, begun.frozen).params, where.variables["params"])


def test_ternary_piggyback_starts_as_the_pretrained_model_too():
    where = setting_of("piggyback")
    stage, begun = first_stage(methods.Piggyback(ternary=True), where.moment())
    assert_same(effective(stage, begun.own, begun.frozen).params, where.variables["params"])


def test_scales_of_one_and_shifts_of_zero_are_the_pretrained_model():
    where = setting_of("ssf")
    stage, begun = first_stage(methods.Ssf(), where.moment())
    drawn = flatten({name: begun.own[name] for name in ("scales", "shifts")})
    values = {kind: np.concatenate([drawn[path].ravel() for path in drawn if path.startswith(kind)])
              for kind in ("scales", "shifts")}  # fmt: skip
    assert 0.9 < values["scales"].min() < 1 < values["scales"].max() < 1.1
    assert -0.1 < values["shifts"].min() < 0 < values["shifts"].max() < 0.1
    still = {
        **begun.own,
        "scales": jax.tree.map(np.ones_like, begun.own["scales"]),
        "shifts": jax.tree.map(np.zeros_like, begun.own["shifts"]),
    }
    assert_same(effective(stage, still, begun.frozen).params, where.variables["params"])


def test_packnet_starts_with_the_smallest_half_of_every_kernel_at_zero():
    where = setting_of("packnet")
    stage, begun = first_stage(methods.PackNet(), where.moment())

    def expected(path, leaf):
        if path not in {layer.path for layer in where.layout.layers}:
            return leaf
        return np.where(np.abs(leaf) > np.median(np.abs(leaf)), leaf, 0)

    found = effective(stage, begun.own, begun.frozen).params
    assert_same(found, map_with_path(expected, where.variables["params"]))


def test_coefficients_of_zero_are_the_pretrained_model():
    where = setting_of("atlas")
    start = where.variables["params"]
    pool = pooled_in_memory(where.layout, start, one=noisy(start, 1.0, 3), two=noisy(start, 1.0, 4))
    moment = where.moment(pool=pool)
    _, second = methods.Atlas().stages(moment.network, CONFIG)
    _, head = first_stage(methods.Atlas(), moment)
    begun = second.begin(dataclasses.replace(moment, own=head.own, frozen=head.frozen))
    assert {len(leaf) for leaf in jax.tree.leaves(begun.own["coefficients"])} == {2}
    assert_same(effective(second, begun.own, begun.frozen).params, start)


@pytest.mark.parametrize("name", list(methods.METHODS))
def test_whatever_a_first_stage_trains_changes_what_the_model_is_applied_with(name):
    where = setting_of(name)
    stage, begun = first_stage(methods.METHODS[name](), where.moment())
    assert stage.groups.keys() == begun.own.keys()
    # A gate or switch that is closed hides what it governs: these stay open until their own turn.
    base = flatten(
        {**noisy(dict(begun.own), 0.3), **{key: begun.own[key] for key in SCORES & begun.own.keys()}}
    )
    computed = effective(stage, unflatten(base), begun.frozen)
    for path, leaf in base.items():
        again = effective(stage, unflatten({**base, path: leaf - 1}), begun.frozen)
        with pytest.raises(AssertionError):
            chex.assert_trees_all_equal((computed.params, computed.added), (again.params, again.added))
