"""Arrays as users give them: what is taken, and what is refused where `TaskData` is made."""

import dataclasses

import numpy as np
import pytest

import cwps_jax as cwps
from cwps_jax.data.arrays_check import not_finite
from cwps_jax.data.split import ArraySplit


def arrays(count: int = 12, classes: int = 4, **changes) -> dict:
    images = np.random.default_rng(0).normal(size=(count, 6, 6, 1)).astype(np.float32)
    return {"image": images, "label": np.arange(count) % classes, **changes}


def with_value(value: float, item: int) -> np.ndarray:
    images = arrays()["image"]
    images[item, 2, 3] = value
    return images


LABEL = np.arange(12) % 4

REFUSED = {
    "no image": ({"label": LABEL}, "test data has no 'image', only .'label'.: name the model's input so"),
    "a tuple": ((np.zeros((12, 6, 6, 1)), LABEL), "test data is a tuple: give a dict of arrays"),
    "one NaN pixel": (arrays(image=with_value(np.nan, 7)), "test image 7 has a value that is nan"),
    "one infinite pixel": (arrays(image=with_value(-np.inf, 3)), "test image 3 has a value that is -inf"),
    "another size": (
        arrays(image=np.zeros((12, 8, 8, 1), np.float32)),
        r"test images have the shape \(8, 8, 1\), train images \(6, 6, 1\)",
    ),
    "another type": (
        arrays(image=np.zeros((12, 6, 6, 1), np.uint8)),
        "test images have the dtype uint8, train images float32",
    ),
    "text for images": (arrays(image=["a.png"] * 12), "test images are <U5: give numbers"),
    "no axis beside the items": (arrays(image=np.zeros(12)), r"shape \(12,\): give one array per item"),
    "ragged lists": (arrays(image=[[1.0]] * 11 + [[1.0, 2.0]]), "'image': its items have different shapes"),
    "objects": (arrays(label=[None] * 12), "'label': its items are not numbers"),
    "one number": (arrays(label=1), "'label' is a single int: give one value per item"),
    "one-hot": (arrays(label=np.eye(4)[LABEL]), r"one-hot, \(12, 4\): give label.argmax\(axis=1\)"),
    "from 1": (arrays(label=LABEL + 1), "item 3: must be from 0 to 3; these count from 1: give label - 1"),
    "minus one": (arrays(label=LABEL - 1), "label -1 of item 0.*keep the items with label >= 0"),
    "ignore_index": (arrays(label=np.where(LABEL == 2, -100, LABEL)), "label -100 of item 2.*lowest is -100"),
    "too many": (arrays(label=2 * LABEL), "label 4 of item 2.*give classes=7"),
    "a pixel": (
        arrays(label=np.zeros((12, 6, 6), int)),
        "shape .12, 6, 6.: one class per item is .n,.; for several, or one per pixel, leave classes out",
    ),
    "several": (
        arrays(label=np.eye(4)[LABEL] + np.eye(4)[0]),
        "for several, or one per pixel, leave classes",
    ),
    "fractions": (arrays(label=LABEL.astype(np.float32)), "float32: must be whole.*astype"),
    "names": (arrays(label=np.array(list("abcd"))[LABEL]), "<U1: must be whole.*return_inverse"),
    "text beside the images": (arrays(name=["a"] * 12), "test 'name' is <U1: no loss can take it"),
    "a bool": (arrays(label=LABEL > 1), "bool: must be whole.*astype"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_on_is_refused_in_one_line(case):
    test, message = REFUSED[case]
    with pytest.raises(cwps.CwpsError, match=message) as refusal:
        cwps.TaskData(arrays(), arrays(), test, classes=4)
    assert "\n" not in str(refusal.value)


def test_two_classes_called_minus_one_and_one_are_named_with_the_remedy():
    signs = arrays(label=2 * (LABEL % 2) - 1)
    with pytest.raises(cwps.CwpsError, match=r"these are -1 and 1: give \(label \+ 1\) // 2"):
        cwps.TaskData(signs, signs, signs, classes=2)


@pytest.mark.parametrize("wrong", [{"label": LABEL}, arrays(label=np.eye(4)[LABEL])])
def test_a_wrong_training_set_is_refused_before_validation_is_taken_from_it(wrong):
    with pytest.raises(cwps.CwpsError, match="train data has no 'image'|train labels are one-hot"):
        cwps.TaskData.from_arrays(wrong, arrays(), classes=4)


def test_lists_become_arrays_of_the_types_that_jax_holds():
    lists = {"image": arrays()["image"].tolist(), "label": LABEL.tolist()}
    task = cwps.TaskData.from_arrays(lists, lists, classes=4)
    assert task.test["image"].dtype == np.float32 and task.test["label"].tolist() == LABEL.tolist()
    np.testing.assert_array_equal(task.test["image"], arrays()["image"])
    assert len(task.train) + len(task.validation) == 12


def test_a_column_of_classes_is_squeezed_and_a_column_of_targets_is_not():
    column = arrays(label=LABEL[:, None])
    assert cwps.TaskData.from_arrays(column, column, classes=4).train["label"].ndim == 1
    assert cwps.TaskData.from_arrays(column, column).train["label"].shape[1:] == (1,)


def test_a_finite_array_is_looked_through_to_its_end_and_a_whole_one_is_not():
    array = np.zeros((3000, 2), np.float32)
    assert not_finite(array) is None and not_finite(array.astype(np.uint8)) is None
    array[2999, 1] = np.inf
    assert not_finite(array) == (2999, np.inf)


def test_a_split_that_was_made_before_is_looked_through_too():
    broken = ArraySplit(arrays(image=with_value(np.nan, 5)))
    task = cwps.TaskData(arrays(), arrays(), arrays(), classes=4)
    with pytest.raises(cwps.CwpsError, match="validation image 5 has a value that is nan"):
        dataclasses.replace(task, validation=broken)


def test_a_config_takes_what_numpy_and_a_notebook_give():
    given = cwps.TrainConfig(
        learning_rate=np.float32(0.5),
        epochs=np.int64(3),
        batch_size=np.array(8),
        private=["*query*"],
        optimizer=np.str_("adamw"),
    )
    plain = cwps.TrainConfig(
        learning_rate=0.5, epochs=3, batch_size=8, private=("*query*",), optimizer="adamw"
    )
    assert given == plain and hash(given) == hash(plain)
    assert [type(given.learning_rate), type(given.epochs), type(given.private)] == [float, int, tuple]
    assert type(cwps.methods.Cwps(lambda_=np.float64(0.25)).lambda_) is float


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": np.float64(3.5)}, "config.epochs = 3.5: must be a whole number"),
        ({"epochs": True}, "config.epochs = True: must be a whole number"),
        ({"learning_rate": np.array([0.1, 0.2])}, "config.learning_rate = .*: must be a number"),
        ({"private": "*query*"}, "must be a tuple of a string"),
        ({"optimizer": np.zeros(2)}, "config.optimizer = .*: must be one of 'sgd', 'adamw'"),
        ({"optimizer": lambda: None}, "must be one of 'sgd', 'adamw'"),
    ],
)
def test_a_config_refuses_the_rest_in_one_line(wrong, message):
    with pytest.raises(cwps.CwpsError, match=message) as refusal:
        cwps.TrainConfig(**wrong)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 200
