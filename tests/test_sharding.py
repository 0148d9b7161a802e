"""Child, parent, scores and optimizer spread over eight devices train as one device does."""

import jax
import numpy as np
import pytest
from stages import CONFIG, run_stages
from test_parallel import collectives

from cwps_jax import CwpsError, TrainConfig
from cwps_jax.parallel import Parallel
from cwps_jax.sharding import spec_of

EVERYTHING = (("*", "split"),)


@pytest.fixture(scope="module")
def one(tiny_model, tiny_layout, tiny_variables):
    return run_stages(tiny_model, tiny_layout, tiny_variables, Parallel(devices=tuple(jax.devices()[:1])))


@pytest.fixture(scope="module")
def spread(tiny_model, tiny_layout, tiny_variables):
    return run_stages(tiny_model, tiny_layout, tiny_variables, Parallel(shard=EVERYTHING))


def test_what_is_spread_trains_as_one_device_does(one, spread):
    (of_one, recorded), (trained, recording) = one, spread
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    jax.tree.map(close, recording.fetched, recorded.fetched)
    jax.tree.map(close, (trained.params, trained.other), (of_one.params, of_one.other))
    jax.tree.map(np.testing.assert_array_equal, trained.gates, of_one.gates)


def test_a_parameter_is_gathered_once_a_step_and_the_parent_never(spread, tiny_variables):
    _, recording = spread
    compiled = [one for name, one in recording.compiled if name == "step"]
    gathered = [
        collectives(program)["all-gather"] for one in compiled for program, *_ in one._programs.values()
    ]
    parameters = jax.tree.leaves(tiny_variables["params"])
    split = sum(leaf.size for leaf in parameters if any(size % 8 == 0 for size in leaf.shape))
    # The hard stage takes rows out of the packed child, which is gathered for that: here all of conv2.
    assert gathered == [split, split, split + 3 * 3 * 6 * 8 + 8]


def test_each_device_holds_its_part():
    state = {"own": {"params": {"conv": {"kernel": np.zeros((3, 3, 6, 64), np.float32)}}}}
    (leaf,) = jax.tree.leaves(Parallel(shard=EVERYTHING).place(state))
    assert {shard.data.shape for shard in leaf.addressable_shards} == {(3, 3, 6, 8)}


@pytest.mark.parametrize(
    ("path", "shape", "wanted"),
    [
        ("own/params/conv/kernel", (3, 3, 16, 64), (None, None, None, "data")),
        ("optimizers/params/0/trace/conv/kernel", (64, 16), ("data", None)),
        ("parent/head/kernel", (64, 16), ()),
        ("own/params/conv/bias", (64,), ()),
        ("own/params/conv/kernel", (3, 3, 5, 7), ()),
    ],
)
def test_the_first_rule_that_matches_counts(path, shape, wanted):
    rules = (("head/*", "whole"), ("*kernel", "split"))
    assert tuple(spec_of(rules, path, shape, 8, "data")) == wanted


def test_what_cannot_be_is_one_line(tiny_model, tiny_layout, tiny_variables):
    with pytest.raises(CwpsError, match="config.shard: needs config.parallel=jit"):
        Parallel("pmap", shard=EVERYTHING)
    with pytest.raises(CwpsError, match="is not a pattern over paths of parameters and 'split' or 'whole'"):
        TrainConfig(shard=(("*", "halve"),))
    with pytest.raises(CwpsError, match="pattern 'conv7/\\*' matches no parameter"):
        run_stages(tiny_model, tiny_layout, tiny_variables, Parallel(shard=(("conv7/*", "split"),)), CONFIG)
