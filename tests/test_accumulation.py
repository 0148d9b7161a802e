"""A step in several parts is the step of the whole batch, where nothing looks at several images at once."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stages import CONFIG, STEPS, run_stages

from cwps_jax import CwpsError, modules
from cwps_jax.parallel import Parallel
from cwps_jax.train.accumulation import accumulated
from cwps_jax.train.state import TrainState, start_state

SHAPE = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)


class Plain(nn.Module):
    """Without norms."""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.relu(nn.Conv(6, (3, 3), name="conv1")(images))
        x = nn.relu(nn.Conv(8, (3, 3), strides=2, name="conv2")(x))
        return nn.Dense(3, name="head")(jnp.mean(x, axis=(1, 2)))


def run(model, accumulate, mode="jit"):
    layout = modules.channel_layout(model, SHAPE)
    variables = jax.device_get(model.init(jax.random.key(0), jnp.zeros(SHAPE.shape)))
    config = dataclasses.replace(CONFIG, accumulate=accumulate, parallel=mode)
    return run_stages(model, layout, variables, Parallel(mode, tuple(jax.devices()[:2])), config)


@pytest.fixture(scope="module")
def whole():
    return run(Plain(), 1)


@pytest.mark.parametrize(("accumulate", "mode"), [(2, "jit"), (8, "jit"), (4, "pmap")])
def test_parts_give_the_numbers_of_the_whole_batch(whole, accumulate, mode):
    (one, of_one), (trained, recording) = whole, run(Plain(), accumulate, mode)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    # Losses and metrics of every step, and the states between the stages: their count of steps, too.
    jax.tree.map(close, recording.fetched, of_one.fetched)
    jax.tree.map(close, trained.params, one.params)
    jax.tree.map(np.testing.assert_array_equal, trained.gates, one.gates)
    ours, theirs = (each.so_far.flops_per_step for each in (trained, one))
    assert ours == pytest.approx(theirs, rel=0.1)  # the update counts, too
    states = [tree for tree in recording.fetched if isinstance(tree, TrainState)]
    assert [int(state.step) for state in states] == [STEPS, 2 * STEPS, 3 * STEPS]


def seen_parts(count, group):
    """Returns what each part of a batch of 16 is given, and the result of all."""
    state = dataclasses.replace(start_state({"batch_stats": {"mean": jnp.float32(0)}}, CONFIG), own={})
    seen = []

    def gradient(state, batch):
        jax.debug.callback(lambda *told: seen.append(told), batch["row"], state.key, ordered=True)
        moved = {"batch_stats": {"mean": state.other["batch_stats"]["mean"] + 1}}
        return {"g": jnp.sum(batch["row"])}, (jnp.mean(batch["row"]), moved, jnp.max(batch["row"]))

    batch = {"row": jnp.arange(16, dtype=jnp.float32)}
    result = jax.jit(accumulated(gradient, count, group))(state, batch)
    jax.effects_barrier()
    if count > 1:
        result = jax.device_get(result)
    return seen, result


def test_every_part_moves_the_statistics_and_draws_its_own():
    seen, (gradients, (mean, moved, last)) = seen_parts(4, 1)
    rows = [tuple(map(int, rows)) for rows, _ in seen]
    assert rows == [(0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)]
    assert len({tuple(map(int, key)) for _, key in seen}) == 4
    assert (gradients["g"], mean, last) == (120 / 4, 7.5, 15)
    assert moved["batch_stats"]["mean"] == 4


def test_partners_stay_in_one_part():
    seen, _ = seen_parts(2, 2)
    rows = [tuple(map(int, rows)) for rows, _ in seen]
    assert rows == [(0, 1, 4, 5, 8, 9, 12, 13), (2, 3, 6, 7, 10, 11, 14, 15)]


def test_parts_that_the_devices_do_not_divide_are_one_line():
    with pytest.raises(CwpsError, match="batch_size = 16: must be a multiple of 24, 12 items per device"):
        run(Plain(), 12)
    with pytest.raises(CwpsError, match="config.accumulate = 0: must be at least 1"):
        dataclasses.replace(CONFIG, accumulate=0)


def test_a_model_with_norms_is_trained_in_parts(tiny_model):
    _, recording = run(tiny_model, 2)
    losses = [
        row["loss"] for tree in recording.fetched if isinstance(tree, list) for row in tree if "loss" in row
    ]
    assert len(losses) == 3 * STEPS and np.isfinite(losses).all() and losses[-1] < losses[0]
