"""learn_task: research code with its own loss, metric and head, and what it refuses."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import TinyModel

import cwps_jax as cwps
from cwps_jax.provenance import check_task, learned_with

CONFIG = cwps.TrainConfig(epochs=3, batch_size=16, learning_rate=0.05, budget=0.6)


def images_of(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 8, 8, 1)).astype(np.float32)


def task(label, **options) -> cwps.TaskData:
    """Returns a task whose labels are a function of its images."""
    splits = [
        {"image": images_of(n, seed), "label": label(images_of(n, seed))} for seed, n in enumerate((96, 24))
    ]
    return cwps.TaskData.from_arrays(*splits, **options)


def brightest_third(images: np.ndarray) -> np.ndarray:
    return np.argmax(
        [images[:, :3].mean((1, 2, 3)), images[:, 3:6].mean((1, 2, 3)), images[:, 6:].mean((1, 2, 3))], 0
    )


@pytest.fixture
def pool(tmp_path, tiny_variables, tiny_layout) -> cwps.Pool:
    return cwps.Pool.create(tmp_path / "pool", tiny_variables, tiny_layout)


@pytest.fixture(scope="module")
def trainer(tiny_model) -> cwps.Trainer:
    return cwps.make_trainer(tiny_model, task(brightest_third, classes=3), config=CONFIG)


def test_a_task_is_learned_measured_and_stored(pool, tiny_model, trainer):
    data = task(brightest_third, classes=3)
    seen = []
    learned = cwps.learn_task(
        pool,
        "birds",
        tiny_model,
        data,
        config=CONFIG,
        trainer=trainer,
        observe=seen.append,
        notes={"by": "me"},
    )
    assert [progress.stage for progress in seen] == ["warm-up", "soft", "hard"]
    assert learned.name == "birds@1"
    assert 0 < learned.params_ratio <= 0.6
    assert sum(learned.relation.values()) == pytest.approx(1)
    stored = cwps.Pool.open(pool.folder)
    chex.assert_trees_all_equal(stored.effective("birds"), learned.variables)
    record = stored.version("birds").record
    assert record["by"] == "me" and record["accuracy_when_learned"] == learned.metric
    check_task("birds", record, data, learned_with("birds", data, CONFIG))
    other = task(lambda images: brightest_third(images) % 2, classes=2)
    with pytest.raises(cwps.CwpsError, match=r"'birds' .* other settings or data: classes \(was 3, is 2\)"):
        check_task("birds", record, other, learned_with("birds", other, CONFIG))
    # What is stored is a plain backbone: the model itself computes it.
    logits = tiny_model.apply(learned.variables, data.test["image"])
    assert np.mean(np.argmax(logits, 1) == data.test["label"]) == pytest.approx(learned.metric)


def test_a_padded_head_is_cut_to_the_tasks_own(pool, trainer):
    data = task(lambda images: brightest_third(images) % 2, classes=2)
    classes = np.full(len(data.train), 2, np.int32)
    data = dataclasses.replace(data, train=data.train.with_fields(classes=classes))
    learned = cwps.learn_task(pool, "two", TinyModel(classes=2), data, config=CONFIG, trainer=trainer)
    assert learned.variables["params"]["head"]["kernel"].shape == (8, 2)
    assert pool.effective("two")["params"]["head"]["bias"].shape == (2,)


def multi_label(logits, batch):
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, batch["label"]), axis=-1)


def squared_error(outputs, batch):
    return jnp.mean((outputs - batch["label"]) ** 2, axis=tuple(range(1, outputs.ndim)))


class DenseOutputs(nn.Module):
    """The tiny backbone with a head that gives a value for every pixel of a quarter of the size."""

    @nn.compact
    def __call__(self, images, train: bool = False):
        x = nn.Conv(6, (3, 3), use_bias=False, name="conv1")(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        x = nn.relu(nn.Conv(8, (3, 3), strides=2, name="conv2")(x))
        return nn.Conv(1, (1, 1), name="head")(x)


class WiderStem(nn.Module):
    @nn.compact
    def __call__(self, images, train: bool = False):
        x = nn.relu(nn.Conv(7, (3, 3), use_bias=False, name="conv1")(images))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


@pytest.mark.parametrize(
    ("model", "loss", "label"),
    [
        (TinyModel(classes=5), multi_label, lambda i: (i[:, :5, 0, 0] > 0).astype(np.float32)),
        (TinyModel(classes=1), squared_error, lambda i: i.mean((1, 2))),
        (DenseOutputs(), squared_error, lambda i: i[:, ::2, ::2]),
    ],
    ids=["multi-label", "regression", "dense outputs"],
)
def test_ones_own_loss_metric_and_head(pool, model, loss, label):
    metric = lambda outputs, batch: -loss(outputs, batch)
    learned = cwps.learn_task(pool, "own", model, task(label), loss=loss, metric=metric, config=CONFIG)
    assert learned.metric < 0
    head = pool.effective("own")["params"]["head"]["kernel"]
    assert head.shape == learned.variables["params"]["head"]["kernel"].shape


@pytest.mark.parametrize("method", ["finetune", "probe"])
def test_other_methods_are_stored_by_the_same_code(pool, tiny_model, trainer, method, tiny_variables):
    config = dataclasses.replace(CONFIG, method=method)
    data = task(brightest_third, classes=3)
    learned = cwps.learn_task(pool, "t", tiny_model, data, config=config, trainer=trainer)
    chex.assert_trees_all_equal(pool.effective("t"), learned.variables)
    assert pool.shares_channels("t") == (method == "finetune")
    assert learned.relation == ({"t": 1.0} if method == "finetune" else {})
    assert learned.params_ratio == (1.0 if method == "finetune" else 0.0)
    if method == "probe":  # nothing but the head has moved, and nothing else is stored
        with pytest.raises(cwps.CwpsError, match="t@1 is stored by probe, not as channels with owners"):
            pool.relation("t")
        count = pool.count("t")
        assert (count.active, count.private, count.head) == (0, 0, 3 * 8 + 3)
        assert count.bits == 32 * count.head
        without_head = {k: v for k, v in learned.variables["params"].items() if k != "head"}
        start = {k: v for k, v in tiny_variables["params"].items() if k != "head"}
        chex.assert_trees_all_equal(without_head, start)
        chex.assert_trees_all_equal(learned.variables["batch_stats"], tiny_variables["batch_stats"])
        assert np.any(
            learned.variables["params"]["head"]["kernel"] != tiny_variables["params"]["head"]["kernel"]
        )


def test_what_cannot_be_learned_is_refused_before_training(pool, tiny_model, trainer):
    data = task(brightest_third, classes=3)
    never = lambda progress: pytest.fail("it trained")

    def learn(name="t", model=tiny_model, trainer=trainer, **settings):
        config = dataclasses.replace(CONFIG, **settings)
        cwps.learn_task(pool, name, model, data, config=config, trainer=trainer, observe=never)

    with pytest.raises(cwps.CwpsError, match="'pretrained'"):
        learn("pretrained")
    with pytest.raises(cwps.CwpsError, match="norms and other private parameters alone cost 0.02"):
        learn(budget=0.001)
    with pytest.raises(cwps.CwpsError, match="batch_size = 512"):
        learn(batch_size=512)
    with pytest.raises(cwps.CwpsError, match="made for 'jit'"):
        learn(parallel="pmap")
    with pytest.raises(cwps.CwpsError, match="another loss or metric"):
        cwps.learn_task(pool, "t", tiny_model, data, loss=squared_error, trainer=trainer, config=CONFIG)
    with pytest.raises(cwps.CwpsError, match="its backbone differs from this model at conv1/kernel"):
        learn(model=WiderStem(), trainer=cwps.make_trainer(WiderStem(), data, config=CONFIG))
    with pytest.raises(cwps.CwpsError, match="no module 'classifier'"):
        learn(trainer=None, head="classifier")
    assert pool.tasks == ()


def test_a_name_is_taken_once(pool, tiny_model, trainer):
    data = task(brightest_third, classes=3)
    cwps.learn_task(pool, "t", tiny_model, data, config=CONFIG, trainer=trainer)
    with pytest.raises(cwps.CwpsError, match="'t' is in the pool already"):
        cwps.learn_task(pool, "t", tiny_model, data, config=CONFIG, trainer=trainer)


def test_the_pools_files_outlive_the_arrays_given_to_it(pool, tiny_model, trainer, tiny_variables):
    """Steps donate their state: neither the pool's nor the caller's arrays may go with it."""
    before = jax.tree.map(np.copy, tiny_variables)
    learned = cwps.learn_task(
        pool, "t", tiny_model, task(brightest_third, classes=3), config=CONFIG, trainer=trainer
    )
    chex.assert_trees_all_equal(tiny_variables, before)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(learned.variables))
