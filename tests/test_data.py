"""Data: splits without leaks, batches keyed by step."""

import numpy as np
import pytest

from cwps_jax import data
from cwps_jax.config import DataConfig
from cwps_jax.data import digits
from cwps_jax.data.pipeline import (
    ahead,
    evaluation_batches,
    rows_of_step,
    steps_per_epoch,
    training_batches,
)
from cwps_jax.data.split import ArraySplit
from cwps_jax.data.task import TaskData, held_out_items
from cwps_jax.errors import CwpsError


def arrays(count: int, classes: int = 4, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(count, 2, 2, 1)).astype(np.float32)
    return {"image": images, "label": np.arange(count, dtype=np.int32) % classes}


def digits_task(name: str) -> TaskData:
    return data.load(DataConfig(data="digits"), name)


@pytest.mark.parametrize("name", list(digits.DOMAINS))
def test_a_digits_task_is_complete(name):
    task = digits_task(name)
    for split in (task.train, task.validation, task.test):
        assert split["image"].shape[1:] == (12, 12, 1) and split["image"].dtype == np.float32
        assert set(split["label"]) == set(range(task.classes))
        assert np.abs(split["image"]).max() <= 1


def test_no_scan_is_trained_on_in_one_task_and_tested_in_another(monkeypatch):
    """Every task is drawn as scanned, so that a scan can be recognised by its pixels."""
    monkeypatch.setattr(digits, "DOMAINS", {name: lambda images: images for name in digits.DOMAINS})
    tasks = [digits_task(name) for name in digits.DOMAINS]
    trained = {
        image.tobytes() for task in tasks for image in (*task.train["image"], *task.validation["image"])
    }
    tested = {image.tobytes() for task in tasks for image in task.test["image"]}
    assert not trained & tested
    assert 0.25 < len(tested) / len(trained | tested) < 0.35


def test_the_domains_differ_and_are_the_same_every_time():
    drawn = {name: digits_task(name).test["image"] for name in digits.DOMAINS if name != "loops"}
    for name, images in drawn.items():
        np.testing.assert_array_equal(images, digits_task(name).test["image"])
        others = [other for key, other in drawn.items() if key != name]
        assert all(np.abs(images - other).mean() > 0.05 for other in others)


def test_unknown_source_and_task_are_one_line():
    with pytest.raises(CwpsError, match=r"config\.data = 'x'"):
        data.load(DataConfig(data="x"), "y")
    with pytest.raises(CwpsError, match="no task 'birds'"):
        data.load(DataConfig(), "birds")
    with pytest.raises(CwpsError, match="config.image_size = 32: the digits have 12 pixels"):
        data.load(DataConfig(image_size=32), "digits")
    with pytest.raises(CwpsError, match="config.data_dir = 'x': the digits are embedded"):
        data.load(DataConfig(data_dir="x"), "digits")


def test_validation_is_a_tenth_of_each_class_whatever_the_order():
    train = arrays(400)
    task = TaskData.from_arrays(train, arrays(8), classes=4)
    assert np.bincount(task.validation["label"]).tolist() == [10] * 4
    order = np.random.default_rng(1).permutation(400)
    shuffled = TaskData.from_arrays({k: v[order] for k, v in train.items()}, arrays(8), classes=4)
    chosen = lambda task: {image.tobytes() for image in task.validation["image"]}
    assert chosen(task) == chosen(shuffled)
    assert not chosen(task) & {image.tobytes() for image in task.train["image"]}


def test_every_class_has_a_validation_item():
    digests = np.random.default_rng(0).integers(0, 256, (6, 32), np.uint8)
    assert held_out_items(digests, np.array([0, 0, 0, 0, 1, 1]), 0.1).sum() == 2
    # But one that has only one image is trained on.
    assert not held_out_items(digests, np.array([0, 0, 0, 0, 0, 1]), 0.1)[5]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([-1, 0, 1, 2], "label -1 of item 0"),
        ([0, 1, 2, 4], "label 4 of item 3"),
        ([0.0, 1.0, 2.0, 3.0], "whole numbers"),
    ],
)
def test_labels_out_of_range_are_refused(labels, message):
    wrong = {**arrays(4), "label": np.array(labels)}
    with pytest.raises(CwpsError, match=message):
        TaskData(arrays(8), arrays(4), wrong, classes=4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"label": np.zeros(3, int)}, "no 'image'"),
        ({"image": np.zeros((3, 1)), "label": np.zeros(4, int)}, "different lengths"),
        ({"image": np.zeros((0, 1)), "label": np.zeros(0, int)}, "empty"),
        ({"image": np.zeros((3, 1))}, "no 'label'"),
    ],
)
def test_malformed_arrays_are_refused(wrong, message):
    with pytest.raises(CwpsError, match=message):
        TaskData(arrays(8), wrong, arrays(8), classes=4)


def test_a_batch_depends_on_seed_and_step_alone():
    split = ArraySplit(arrays(50))
    whole = list(training_batches(split, 8, seed=3, start=0, stop=20))
    resumed = list(training_batches(split, 8, seed=3, start=11, stop=20))
    for one, other in zip(whole[11:], resumed, strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
    elsewhere = next(training_batches(split, 8, seed=4, start=0, stop=1))
    assert not np.array_equal(whole[0]["image"], elsewhere["image"])


@pytest.mark.parametrize("step", [0, 5, 6, 15])
def test_the_items_of_a_step_are_those_of_its_batch(step):
    split = ArraySplit({"image": np.arange(50)})
    (batch,) = training_batches(split, 8, 3, step, step + 1)
    np.testing.assert_array_equal(rows_of_step(split, 8, 3, step), batch["image"])


def test_an_epoch_has_no_item_twice_and_epochs_differ():
    split = ArraySplit({"image": np.arange(50), "label": np.arange(50)})
    steps = steps_per_epoch(split, 8)
    epochs = [
        np.concatenate([b["image"] for b in training_batches(split, 8, 0, e * steps, (e + 1) * steps)])
        for e in range(2)
    ]
    assert all(len(set(epoch)) == 48 for epoch in epochs)
    assert not np.array_equal(*epochs)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 23])
def test_evaluation_counts_every_item_once(count):
    split = ArraySplit({"image": np.arange(count), "label": np.arange(count)})
    seen = np.concatenate([batch["image"][:real] for batch, real in evaluation_batches(split, 8)])
    np.testing.assert_array_equal(seen, np.arange(count))
    assert all(len(batch["image"]) == 8 for batch, _ in evaluation_batches(split, 8))


def test_fewer_images_than_a_batch_is_refused():
    with pytest.raises(CwpsError, match="batch_size = 64.*only 50"):
        steps_per_epoch(ArraySplit(arrays(50)), 64)


def test_what_is_ahead_is_given_in_order_and_bounded():
    asked = []
    items = (asked.append(number) or number for number in range(9))
    seen = []
    for number in ahead(items, 3):
        seen.append(number)
        assert len(asked) - len(seen) <= 3
    assert seen == list(range(9)) == asked
    assert list(ahead([1, 2], 5)) == [1, 2]
