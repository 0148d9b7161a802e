"""Other people's models: norms with statistics of their own, partitioned parameters, keys of other names."""

import flax.linen as nn
import foreign_models as models
import jax
import numpy as np
import pytest

import cwps_jax as cwps
from cwps_jax.train.norms import estimated

CONFIG = cwps.TrainConfig(epochs=3, batch_size=16, learning_rate=0.0)


def task() -> cwps.TaskData:
    rng = np.random.default_rng(0)

    def split(count):
        images = 2 + 3 * rng.normal(size=(count, 8, 8, 1)).astype(np.float32)
        return {"image": images, "label": np.arange(count) % 3}

    return cwps.TaskData(split(48), split(16), split(16), classes=3)


def learned(model, tmp_path, config=CONFIG, data=None):
    data = data or task()
    trainer = cwps.make_trainer(model, data, config=config)
    pool = cwps.Pool.create(tmp_path / "pool", trainer.new_variables(0), trainer.layout)
    rows = []
    done = cwps.learn_task(pool, "t", model, data, config=config, trainer=trainer, observe=rows.append)
    return done, rows


@pytest.mark.parametrize("momentum", [0.9, 0.99, 0.999])
def test_statistics_of_a_norm_of_ones_own_are_those_of_the_data_whatever_its_momentum(tmp_path, momentum):
    """Nothing moves in training, and the hard stage's three steps move statistics by (1 - momentum) each."""
    data, model = task(), models.MovingNormNet(momentum)
    done, _ = learned(model, tmp_path, data=data)
    statistics = done.variables["batch_stats"]
    features = nn.Conv(6, (3, 3), use_bias=False).apply(
        {"params": done.variables["params"]["conv1"]}, data.train["image"]
    )
    np.testing.assert_allclose(statistics["own"]["mean"], features.mean((0, 1, 2)), rtol=0.03, atol=0.02)
    np.testing.assert_allclose(statistics["own"]["var"], features.var((0, 1, 2)), rtol=0.06)
    # What training does not average is left as training left it: 3 stages of an epoch of 3 steps.
    assert statistics["own"]["count"] == 9 and statistics["own"]["count"].dtype == np.int32
    np.testing.assert_array_equal(statistics["own"]["prior"], 1)


@pytest.mark.parametrize("size", [1, 10_000], ids=["small", "large"])
def test_what_does_not_average_stays_and_the_log_names_it(caplog, size):
    rng = np.random.default_rng(0)
    batch = size * rng.normal(size=5).astype(np.float32)
    momenta = {"slow": 0.999, "none": 0.0, "grows": 1.5, "mixed": np.linspace(0.1, 0.9, 5), "sums": 1.0}

    def after(tree):
        update = lambda old, m: (m * old + (batch if np.all(m == 1) else (1 - m) * batch)).astype(np.float32)
        moved = {name: update(tree["own"][name], m) for name, m in momenta.items()}
        rest = {"rest": tree["own"]["rest"], "count": np.float32(tree["own"]["count"] + 1)}
        assert not np.any(tree["theirs"]["mean"])
        return {"own": {**moved, **rest}, "theirs": {"mean": 2 * batch}}

    now = {name: np.full(5, 7 * size, np.float32) for name in (*momenta, "rest")}
    now = {"own": {**now, "count": np.int32(7)}, "theirs": {"mean": np.full(5, np.nan, np.float32)}}
    found = estimated(after, now, {"theirs"})
    np.testing.assert_array_equal(found["theirs"]["mean"], 2 * batch)
    for name in ("slow", "none"):
        np.testing.assert_allclose(found["own"][name], batch, rtol=0.01, atol=0.01 * size)
    for name in ("rest", "count", "grows", "mixed", "sums"):
        np.testing.assert_array_equal(found["own"][name], now["own"][name])
        told = f"batch_stats/own/{name}: not estimated again" in caplog.text
        assert told == (name in ("grows", "mixed", "sums"))
    assert found["own"]["count"].dtype == np.int32


def test_partitioned_parameters_are_unboxed_and_a_key_of_another_name_is_there(tmp_path):
    model = models.Partitioned()
    images = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
    (layer,) = cwps.channel_layout(model, images).layers
    assert layer.gate_shape == (1, 1, 1, 6)
    net = cwps.ChannelShared(model)
    assert net.init(jax.random.key(0), np.zeros((1, 8, 8, 1)))["masks"]["conv"]["kernel"].shape[-1] == 6
    done, rows = learned(model, tmp_path)
    assert isinstance(done.variables["params"]["conv"]["kernel"], np.ndarray)
    # Nothing moves: only what is dropped can tell the epochs apart.
    assert len({row.loss for row in rows}) == len(rows)


def test_a_head_that_is_no_module_is_refused_and_the_nearest_is_named():
    images = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
    model = models.MovingNormNet()
    refusal = "no module 'haed': name its head .* the nearest is 'head'"
    with pytest.raises(cwps.CwpsError, match=refusal):
        cwps.channel_layout(model, images, head="haed")
    with pytest.raises(cwps.CwpsError, match=refusal):
        cwps.channel_layout(model, images, head=("head", "haed"))
    with pytest.raises(cwps.CwpsError, match=refusal):
        cwps.ChannelShared(model, head="haed").init(jax.random.key(0), np.zeros((1, 8, 8, 1)))
    with pytest.raises(cwps.CwpsError, match=refusal):
        cwps.make_trainer(model, task(), config=cwps.TrainConfig(head="haed"))
    shapes = {"head": {"kernel": np.ones((3, 4))}, "dense": {"kernel": np.ones((3, 4))}}
    with pytest.raises(cwps.CwpsError, match=refusal):
        cwps.layout_from_shapes(shapes, head="haed")


def test_private_adds_to_the_defaults_at_every_door():
    images = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
    model = models.VisionTransformer()
    layout = cwps.channel_layout(model, images, private=("*query*",))
    assert {"cls_token", "pos_embed"} < set(layout.private_paths)
    config = cwps.TrainConfig(private=("*query*",))
    assert cwps.make_trainer(model, task(), config=config).layout == layout
    net = cwps.ChannelShared(model, private=("*query*",))
    masks = jax.eval_shape(net.init, jax.random.key(0), images)["masks"]
    assert "query" not in str(jax.tree_util.tree_structure(masks))
