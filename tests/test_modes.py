"""What models call the same thing: whether they train, their head, and their leaves."""

import chex
import flax.linen as nn
import jax
import numpy as np
import pytest

import cwps_jax as cwps

CONFIG = cwps.TrainConfig(epochs=3, batch_size=8)


class Regularised(nn.Module):
    """Batch norm and dropout; `train` has no default."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x)).reshape(len(x), -1)
        return nn.Dense(2, name="head")(nn.Dropout(0.5, deterministic=not train)(nn.Dense(4)(x)))


class Deterministic(Regularised):
    @nn.compact
    def __call__(self, x, *, deterministic):
        return super().__call__(x, not deterministic)


@pytest.fixture(scope="module")
def data():
    images = np.random.default_rng(0).normal(size=(16, 4, 4, 1)).astype(np.float32)
    split = {"image": images, "label": np.arange(16, dtype=np.int32) % 2}
    return cwps.TaskData(split, split, split, classes=2)


def test_a_model_trains_by_whatever_name_it_gives_that(data, tmp_path):
    found = []
    for model in (Regularised(), Deterministic()):
        trainer = cwps.make_trainer(model, data, config=CONFIG)
        start = trainer.new_variables(seed=0)
        pool = cwps.Pool.create(tmp_path / type(model).__name__, start, trainer.layout)
        found.append(cwps.learn_task(pool, "task", model, data, config=CONFIG, trainer=trainer).variables)
        moved = jax.tree.map(lambda a, b: np.any(a != b), start["batch_stats"], found[-1]["batch_stats"])
        assert all(jax.tree.leaves(moved))  # in training mode
    chex.assert_trees_all_equal(*found)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4)(x)
        return nn.Dense(4)(x)


class Unnamed(nn.Module):
    """Its head is Dense_1, and so is a layer of its block."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3)(Block(name="block")(x))
        return nn.Dense(2)(x)


def test_a_head_is_a_module_at_its_path_or_else_of_its_name():
    layout = lambda head: cwps.channel_layout(Unnamed(), np.ones((1, 4)), head=head)
    assert layout("Dense_1").head_paths == ("Dense_1/bias", "Dense_1/kernel")
    assert layout("block/Dense_1").head_paths == ("block/Dense_1/bias", "block/Dense_1/kernel")


@pytest.mark.parametrize("norm", [nn.WeightNorm, nn.SpectralNorm])
def test_leaves_that_are_named_like_paths_are_refused(norm):
    options = {"update_stats": False} if norm is nn.SpectralNorm else {}
    with pytest.raises(cwps.CwpsError, match="a name with '/' in it"):
        model = norm(nn.Dense(4))
        variables = model.init(jax.random.key(0), np.ones((1, 3)), **options)
        cwps.Pool.create("unused", variables, cwps.channel_layout(model, np.ones((1, 3)), **options))


def test_a_pool_with_other_private_leaves_is_refused(tmp_path, tiny_model, tiny_variables):
    images = np.zeros((8, 8, 8, 1), np.float32)
    layout = cwps.channel_layout(tiny_model, images, private=["conv2/*"])
    pool = cwps.Pool.create(tmp_path, tiny_variables, layout)
    split = {"image": images, "label": np.zeros(8, np.int32)}
    data = cwps.TaskData(split, split, split, classes=3)
    with pytest.raises(cwps.CwpsError, match="conv2/bias is private in the pool or in this model"):
        cwps.learn_task(pool, "task", tiny_model, data, config=CONFIG)
