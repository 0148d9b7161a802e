"""An optax transformation as the optimizer: by optax's own convention, recorded, and compared honestly."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo
from changes import changed
from stored_models import whole_models

import cwps_jax as cwps
from cwps_jax import TrainConfig, Trainer, methods
from cwps_jax.config import RunConfig
from cwps_jax.core.trees import flatten
from cwps_jax.methods.optimizers import child_optimizer
from cwps_jax.methods.pooled import Pooled
from cwps_jax.parallel import Parallel
from cwps_jax.provenance import GIVEN, different_training, learned_with, plain

EXAMPLE = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
CWPS = methods.Cwps(score_learning_rate=0.05, search_distance="l2", stage_rates=(1.0, 0.5, 0.25))
SMALL = TrainConfig(method=CWPS, epochs=4, batch_size=16, learning_rate_warmup=0.2)
RATE = 0.0625  # a power of two: multiplying by it rounds nothing


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    label = np.arange(48, dtype=np.int32) % 3
    return {
        "image": rng.standard_normal((48, 8, 8, 1)).astype(np.float32) + label[:, None, None, None],
        "label": label,
    }


@pytest.fixture(scope="module")
def trainer(tiny_model, tiny_layout):
    return Trainer(tiny_model, tiny_layout, EXAMPLE, parallel=Parallel())


@pytest.fixture(scope="module")
def train(trainer, tiny_layout, tiny_variables, arrays):
    pooled = Pooled(whole_models(tiny_layout, [flatten(tiny_variables["params"])]), ("pretrained",))
    return lambda **changes: trainer.train(tiny_variables, arrays, changed(SMALL, **changes), pooled)


@pytest.mark.parametrize("method", [CWPS, "finetune", "bitfit"], ids=["cwps", "finetune", "bitfit"])
def test_sgd_that_is_given_is_sgd(train, method):
    """Over all stages, with the schedule, the stages' factors and the depths' factors."""
    named = train(method=method, learning_rate=RATE, momentum=0.5, layer_decay=0.5)
    given = train(method=method, optimizer=optax.sgd(RATE, 0.5), layer_decay=0.5)
    close = lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, given.params, named.params)
    chex.assert_trees_all_equal(given.gates, named.gates)
    still = train(method=method, optimizer=optax.sgd(0.0))
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(given.params, still.params, atol=1e-3)


def test_adam_that_is_given_keeps_its_moments_where_the_child_is_cut(train):
    """Moments that began anew would take another path."""
    named = train(optimizer="adamw", learning_rate=RATE)
    given = train(optimizer=optax.adam(RATE))
    close = lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
    jax.tree.map(close, given.params, named.params)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adafactor(0.01, min_dim_size_to_factor=2),
        optax.multi_transform(
            {"head": optax.adam(0.01), "rest": optax.sgd(0.01, 0.9)},
            lambda params: {name: "head" if name == "head" else "rest" for name in params},
        ),
        optax.inject_hyperparams(optax.lion)(learning_rate=0.001),
    ],
    ids=["adafactor", "multi_transform", "inject_hyperparams"],
)
def test_state_of_other_trees_is_no_obstacle(train, optimizer):
    trained = train(optimizer=optimizer)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trained.params))


def test_a_closed_channel_stays_where_it_is(tiny_layout, tiny_variables):
    params, gates = tiny_variables["params"], zoo.random_gates(tiny_layout, 0)
    rule = child_optimizer(TrainConfig(optimizer=optax.adamw(0.1, weight_decay=0.3)), tiny_layout)
    ones = jax.tree.map(jnp.ones_like, params)
    updates = flatten(rule.update(ones, rule.init(params), params, gates=gates)[0])
    for layer in tiny_layout.layers:
        for leaf in layer.leaves:
            moved = zoo.kernel_channels(layer, leaf, np.asarray(updates[leaf]))
            for channel, own in enumerate(np.ravel(flatten(gates)[layer.path])):
                assert np.any(moved[channel]) == own, (leaf, channel)


def test_tasks_that_are_given_the_same_object_share_compiled_steps(train, trainer):
    same = optax.sgd(0.01, 0.9)
    train(method="finetune", epochs=1, optimizer=same)
    before = len(trainer.programs)
    train(method="finetune", epochs=2, optimizer=same, seed=3)
    assert len(trainer.programs) == before
    train(method="finetune", epochs=1, optimizer=optax.sgd(0.01, 0.9))
    assert len(trainer.programs) > before


@pytest.mark.parametrize("name", ["learning_rate", "momentum", "weight_decay"])
def test_a_setting_that_would_be_ignored_is_refused(name):
    with pytest.raises(cwps.CwpsError, match=rf"config.{name} = 0.3: would be ignored, since") as refused:
        TrainConfig(optimizer=optax.adamw(1e-3), **{name: 0.3})
    assert "\n" not in str(refused.value)


def test_a_transformation_that_wants_more_than_a_step_has_is_refused(trainer, tiny_model, arrays, tmp_path):
    data = cwps.TaskData.from_arrays(arrays, arrays, classes=3)
    pool = cwps.Pool.create(tmp_path / "pool", trainer.new_variables(0), trainer.layout, backbone="tiny")
    config = dataclasses.replace(SMALL, optimizer=optax.contrib.reduce_on_plateau())
    with pytest.raises(cwps.CwpsError, match="^config.optimizer: a step gives it .*value") as refused:
        cwps.learn_task(pool, "birds", tiny_model, data, config=config, trainer=trainer)
    assert "\n" not in str(refused.value) and not pool.tasks


def test_it_is_recorded_as_given_and_never_taken_for_the_same(trainer, tiny_model, arrays, tmp_path):
    data = cwps.TaskData.from_arrays(arrays, arrays, classes=3)
    pool = cwps.Pool.create(tmp_path / "pool", trainer.new_variables(0), trainer.layout, backbone="tiny")
    config = dataclasses.replace(SMALL, optimizer=optax.sgd(0.01))
    cwps.learn_task(pool, "birds", tiny_model, data, config=config, trainer=trainer)
    told = cwps.Pool.open(pool.folder).version("birds").record["learned_with"]
    assert told["config"]["optimizer"] == GIVEN == "given from Python"
    again = learned_with("birds", data, dataclasses.replace(config, optimizer=optax.adam(1.0)))
    assert "perhaps config.optimizer (given from Python then and now" in different_training(told, again)
    named = learned_with("birds", data, SMALL)
    assert "config.optimizer (was 'given from Python', is 'sgd')" in different_training(told, named)
    assert different_training(named, named) == ""


def test_a_runs_config_is_plain_json_wherever_it_is_given():
    given = optax.sgd(0.01)
    config = RunConfig(
        tasks=("a",), source="s", optimizer=given, overrides={"a": {"optimizer": optax.adam(0.1)}}
    )
    told = json.loads(json.dumps(plain(config)))
    assert told["optimizer"] == told["overrides"]["a"]["optimizer"] == GIVEN
    assert config.train.optimizer is given


def test_a_loss_that_is_not_finite_blames_the_rate_that_counts(train):
    with pytest.raises(FloatingPointError, match="are finite: lower the rate of config.optimizer$"):
        train(method="finetune", epochs=1, optimizer=optax.sgd(1e30))
