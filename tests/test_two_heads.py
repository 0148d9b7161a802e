"""A model of two heads: each task's own, with a loss and a metric of the user's."""

import dataclasses

import chex
import foreign_models as models
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cwps_jax as cwps

HEADS = ("classes", "size")
MODEL = models.TwoHeads()
CONFIG = cwps.TrainConfig(
    method=cwps.methods.Cwps(search_distance="l2"),
    epochs=9,
    batch_size=16,
    learning_rate=0.05,
    budget=0.6,
    head=HEADS,
)


def loss(outputs, batch):
    of_class = optax.softmax_cross_entropy_with_integer_labels(outputs["classes"], batch["label"])
    return of_class + (outputs["size"] - batch["size"]) ** 2


def metric(outputs, batch):
    return jnp.float32(outputs["classes"].argmax(axis=1) == batch["label"]) - abs(
        outputs["size"] - batch["size"]
    )


def task(classes: int | None = None) -> cwps.TaskData:
    rng = np.random.default_rng(0)
    patterns = np.arange(-1, 2)[:, None, None, None] + rng.normal(size=(3, 8, 8, 1))

    def split(count):
        label = np.arange(count, dtype=np.int32) % 3
        size = rng.uniform(0.5, 1.5, count).astype(np.float32)
        images = size[:, None, None, None] * patterns[label]
        return {"image": images.astype(np.float32), "label": label, "size": size}

    return cwps.TaskData(split(96), split(24), split(24), classes)


@pytest.mark.parametrize("classes", [None, 3])
def test_both_heads_are_the_tasks_own_and_it_is_evaluated_and_predicts(tmp_path, classes):
    data = task(classes)
    trainer = cwps.make_trainer(MODEL, data, loss=loss, metric=metric, config=CONFIG)
    assert {path.split("/")[0] for path in trainer.layout.head_paths} == set(HEADS)
    start = cwps.make_trainer(models.TwoHeads(classes=5), data, config=CONFIG).new_variables(0)
    pool = cwps.Pool.create(tmp_path / "pool", start, trainer.layout)
    learned = cwps.learn_task(pool, "t", MODEL, data, config=CONFIG, trainer=trainer)
    again = cwps.learn_task(pool, "again", MODEL, data, config=CONFIG, trainer=trainer)
    pool = cwps.Pool.open(tmp_path / "pool")
    assert learned.params_ratio <= CONFIG.budget and pool.count("t").head == 8 * 3 + 3 + 8 + 1
    for one in (learned, again):
        stored = pool.effective(one.name)
        chex.assert_trees_all_equal(stored, one.variables)
        outputs = jax.jit(MODEL.apply)(stored, data.test["image"])
        predicted = cwps.predict(pool, one.name, data.test["image"], model=MODEL)
        chex.assert_trees_all_close(predicted.logits, outputs, rtol=1e-5, atol=1e-5)
        told = cwps.evaluate(pool, one.name, data.test, metric=metric, model=MODEL)
        assert (
            told.metric == one.metric == pytest.approx(float(np.mean(metric(outputs, data.test))), abs=1e-5)
        )
        assert told.metric > 0.3 and (told.class_names, told.per_class) == ((), {})
    for answer in (lambda: predicted.classes, lambda: predicted.probabilities, lambda: predicted.top(1)):
        with pytest.raises(cwps.CwpsError, match="not a classification task: read .* predictions.logits"):
            answer()
    with pytest.raises(cwps.CwpsError, match="t@1 is not a classification task; give its metric"):
        cwps.evaluate(pool, "t", data.test, model=MODEL)


def test_two_heads_without_a_loss_of_ones_own_are_refused(tmp_path):
    data, config = task(3), dataclasses.replace(CONFIG, head=list(HEADS))
    trainer = cwps.make_trainer(MODEL, data, config=config)
    pool = cwps.Pool.create(tmp_path / "pool", trainer.new_variables(0), trainer.layout)
    never = lambda progress: pytest.fail("it trained")
    with pytest.raises(cwps.CwpsError, match="the default loss and metric take .* of your own"):
        cwps.learn_task(pool, "t", MODEL, data, config=config, trainer=trainer, observe=never)
    with pytest.raises(cwps.CwpsError, match="no module 'sise': .* the nearest is 'size'"):
        cwps.make_trainer(MODEL, data, config=dataclasses.replace(config, head=("classes", "sise")))
    with pytest.raises(cwps.CwpsError, match="config.head = .*: must be a string or a tuple of a string"):
        cwps.TrainConfig(head=("classes", 3))


def test_a_tree_without_its_model_has_two_heads_too():
    dense = {"kernel": np.ones((3, 4)), "bias": np.ones(4)}
    layout = cwps.layout_from_shapes({"hidden": dense, "a": dense, "b": dense}, head=("a", "b"))
    assert set(layout.head_paths) == {"a/kernel", "a/bias", "b/kernel", "b/bias"}
    assert layout.layer_paths == ("hidden/kernel", "hidden/bias")
    with pytest.raises(cwps.CwpsError, match="no module 'c'"):
        cwps.layout_from_shapes({"hidden": dense, "a": dense}, head=("a", "c"))
