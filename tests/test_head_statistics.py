"""A head with batch norms of its own: their statistics are the task's, whatever the pool's classes are."""

import dataclasses

import chex
import foreign_models as models
import jax
import numpy as np
import pytest

import cwps_jax as cwps
from cwps_jax.core.trees import flatten, unflatten

MODEL = models.NormedHeadNet(outputs=3)
CONFIG = cwps.TrainConfig(epochs=6, batch_size=16, learning_rate=0.05)
STATISTICS = {f"{name}/{kind}" for name in ("before", "after") for kind in ("mean", "var")}


def task() -> cwps.TaskData:
    rng = np.random.default_rng(0)
    patterns = rng.normal(size=(3, 8, 8, 1))

    def split(count):
        label = np.arange(count, dtype=np.int32) % 3
        images = 1 + patterns[label] + 0.1 * rng.normal(size=(count, 8, 8, 1))
        return {"image": images.astype(np.float32), "label": label}

    return cwps.TaskData(split(96), split(24), split(24), classes=3)


@pytest.fixture(scope="module")
def trainer() -> cwps.Trainer:
    """A trainer of a larger head than the task's, as tasks of many sizes share one."""
    return cwps.make_trainer(models.NormedHeadNet(outputs=4), task(), config=CONFIG)


@pytest.fixture(scope="module")
def pretrained() -> dict:
    """A model of 5 classes, whose statistics no other one begins with."""
    variables = cwps.make_trainer(models.NormedHeadNet(outputs=5), task()).new_variables(0)
    moved = {path: leaf + 3 for path, leaf in flatten(variables["batch_stats"]).items()}
    return {**variables, "batch_stats": unflatten(moved)}


@pytest.fixture
def pool(tmp_path, pretrained) -> cwps.Pool:
    model, data = models.NormedHeadNet(outputs=5), task()
    return cwps.Pool.create(tmp_path / "pool", pretrained, cwps.channel_layout(model, data.test["image"]))


@pytest.mark.parametrize(
    "method", ["cwps", "finetune", "norm_only", "probe", "piggyback", "packnet", "atlas"]
)
def test_a_task_of_other_classes_keeps_its_heads_statistics(pool, trainer, pretrained, method):
    data, config = task(), dataclasses.replace(CONFIG, method=method)
    cwps.learn_task(
        pool, "before", MODEL, data, config=dataclasses.replace(config, method="cwps"), trainer=trainer
    )
    learned = cwps.learn_task(pool, "t", MODEL, data, config=config, trainer=trainer)
    stored = cwps.Pool.open(pool.folder).effective("t")
    chex.assert_trees_all_equal(stored, learned.variables)
    wanted = MODEL.init(jax.random.key(0), data.test["image"])
    chex.assert_trees_all_equal_shapes_and_dtypes(stored, wanted)
    logits = jax.jit(MODEL.apply)(stored, data.test["image"])
    right = np.asarray(logits).argmax(axis=1) == data.test["label"]
    assert learned.metric == pytest.approx(np.mean(right), abs=1e-6)
    assert cwps.evaluate(pool, "t", data, model=MODEL).metric == learned.metric
    head = flatten(stored["batch_stats"]["head"])
    assert head.keys() == STATISTICS
    if method in ("probe", "piggyback", "packnet"):  # statistics of training are not used: the head's are new
        chex.assert_trees_all_equal(stored["batch_stats"]["head"], wanted["batch_stats"]["head"])
        chex.assert_trees_all_equal(stored["batch_stats"]["norm"], pretrained["batch_stats"]["norm"])
    chex.assert_trees_all_equal(pool.effective("pretrained"), pretrained)


@pytest.mark.parametrize("settings", [{}, {"row_bits": 4}, {"head_share": 0.3}], ids=str)
def test_the_statistics_are_those_of_the_tasks_own_data(pool, trainer, settings):
    """Nothing moves in training: one more look at all data changes them little."""
    data = task()
    config = dataclasses.replace(CONFIG, learning_rate=0.0, **settings)
    learned = cwps.learn_task(pool, "t", MODEL, data, config=config, trainer=trainer)
    chex.assert_trees_all_equal(cwps.Pool.open(pool.folder).effective("t"), learned.variables)
    _, changed = MODEL.apply(learned.variables, data.train["image"], train=True, mutable=["batch_stats"])
    ours, theirs = flatten(learned.variables["batch_stats"]), flatten(changed["batch_stats"])
    for path, mean in ours.items():  # 0.01 of what they are off
        np.testing.assert_allclose(mean, theirs[path], rtol=1e-3, atol=1e-4, err_msg=path)


def test_keep_head_keeps_its_statistics_or_refuses_those_of_another_size(tmp_path, trainer, pool, pretrained):
    data = task()
    config = dataclasses.replace(CONFIG, method="probe", keep_head=True, learning_rate=0.0, epochs=1)
    with pytest.raises(cwps.CwpsError, match="config.keep_head: .*tasks of other classes"):
        cwps.learn_task(pool, "t", MODEL, data, config=config, trainer=trainer)
    start = cwps.make_trainer(MODEL, data).new_variables(1)
    start["batch_stats"] = jax.tree.map(lambda leaf: np.asarray(leaf + 2), start["batch_stats"])
    same = cwps.Pool.create(tmp_path / "same", start, cwps.channel_layout(MODEL, data.test["image"]))
    learned = cwps.learn_task(same, "t", MODEL, data, config=config, trainer=trainer)
    chex.assert_trees_all_equal(learned.variables, start)


def test_in_few_bytes_a_head_keeps_its_statistics_too(pool, trainer):
    """The pre-trained model, whose head has other classes, has none into which they could be folded."""
    data = task()
    config = dataclasses.replace(CONFIG, method="finetune", row_bits=0, byte_budget=0.5)
    learned = cwps.learn_task(pool, "t", MODEL, data, config=config, trainer=trainer)
    opened = cwps.Pool.open(pool.folder)
    chex.assert_trees_all_equal(opened.effective("t"), learned.variables)
    assert flatten(learned.variables["batch_stats"]["head"]).keys() == STATISTICS
    stored = [path for path in opened._trees.own(opened.version("t")) if path.startswith("other/")]
    assert {path.removeprefix("other/batch_stats/head/") for path in stored} == STATISTICS
    assert cwps.evaluate(pool, "t", data, model=MODEL).metric == learned.metric
