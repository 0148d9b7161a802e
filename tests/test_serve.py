"""A stored task at work: what it answers is what its evaluation measured, whatever the picture."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import served
from safetensors import safe_open
from safetensors.numpy import load_file

import cwps_jax as cwps
from cwps_jax import data, models
from cwps_jax.parallel import Parallel
from cwps_jax.report.results import measure_pool
from cwps_jax.serve import given_images, learned_with
from cwps_jax.train.evaluation import Predictor


@pytest.fixture(scope="module")
def pool(own_served_pool) -> cwps.Pool:
    return own_served_pool


@pytest.fixture(scope="module")
def folder(pool):
    return pool.folder.parent


@pytest.fixture(scope="module")
def results(pool, folder) -> dict:
    """What main writes to results.json."""
    load = lambda task: data.load(served.settings(folder / "DATA"), task.replace("earlier", "digits"))
    make_model = lambda classes: models.create("resnet8", classes)
    return measure_pool(pool, "cwps", load, make_model, Parallel("jit"))


def test_files(folder, task: str = "negative") -> list[str]:
    return sorted(map(str, (folder / "DATA" / task / "test").glob("*/[!.]*")))


test_files.__test__ = False


@pytest.mark.parametrize("task", served.TASKS)
def test_predictions_of_the_test_set_are_the_results_accuracy(pool, folder, results, task):
    files = test_files(folder, task)
    right = [name == file.split("/")[-2] for name, file in zip(
        cwps.predict(pool, task, files).classes, files, strict=True
    )]  # fmt: skip
    (row,) = (one for one in results["rows"] if one["task"] == task)
    assert float(np.mean(right, dtype=np.float64)) == row["accuracy"]
    assert row["accuracy"] > 1 / 3


def test_turned_cmyk_and_clear_photographs_are_prepared_as_in_evaluation(pool, folder):
    """Bit by bit, of the test split that evaluation itself loads."""
    test = data.load(served.settings(folder / "DATA"), "negative").test
    names = [test.source.describe(int(item)) for item in test.items]
    odd = [
        place for place, name in enumerate(names) if name.endswith(("turned.jpg", "cmyk.jpg", "alpha.png"))
    ]
    assert len(odd) == 9
    pixels = given_images(learned_with(pool, "negative"), names).read(np.arange(len(names)), None)["image"]
    np.testing.assert_array_equal(pixels, test.read(np.arange(len(names)), None)["image"])
    model = pool.model("negative", models.create("resnet8", 3))
    wanted = Predictor(model)(pool.effective("negative"), test, served.CONFIG.batch_size)
    np.testing.assert_array_equal(cwps.predict(pool, "negative", names).logits, wanted)


def test_a_folder_a_pattern_and_arrays_are_as_good_as_files(pool, folder):
    files = test_files(folder)
    (folder / "DATA/negative/test/two/.hidden").write_bytes(b"no image")
    wanted = cwps.predict(pool, "negative", files)
    root = folder / "DATA/negative/test"
    for given in (str(root), root, [root / "one *", root / "two", root / "zéro/*"]):
        np.testing.assert_array_equal(cwps.predict(pool, "negative", given).logits, wanted.logits)
    pixels = np.stack(
        [np.asarray(served.Image.open(file).convert("RGB")) for file in files if "0" in file[-7:]]
    )
    same = cwps.predict(pool, "negative", pixels)
    assert same.logits.shape == (36, 3)
    chosen = [place for place, file in enumerate(files) if "0" in file[-7:]]
    np.testing.assert_allclose(same.logits, wanted.logits[chosen], atol=1e-5)


def test_probabilities_are_a_softmax_and_top_is_in_order(pool, folder):
    found = cwps.predict(pool, "digits", test_files(folder, "digits"))
    np.testing.assert_allclose(found.probabilities, jax.nn.softmax(found.logits), rtol=1e-5)
    for name, row, top in zip(found.classes, found.probabilities, found.top(5), strict=True):
        assert top[0] == (name, row.max()) and len(top) == 3
        assert [share for _, share in top] == sorted(row, reverse=True)


def test_evaluate_is_the_results_accuracy_by_the_recorded_data_and_by_folders(pool, folder, results):
    (row,) = (one for one in results["rows"] if one["task"] == "negative")
    recorded = cwps.evaluate(pool, "negative")
    by_name = cwps.evaluate(pool, "negative@1", folder / "DATA/negative/test")
    assert recorded.metric == by_name.metric == row["accuracy"]
    np.testing.assert_array_equal(recorded.confusion, by_name.confusion)
    assert recorded.confusion.sum() == 45
    assert np.trace(recorded.confusion) / 45 == pytest.approx(row["accuracy"])
    assert recorded.per_class["two"] == recorded.confusion[1, 1] / 15


def test_evaluate_takes_labels_by_name_whatever_classes_are_there(pool, folder, tmp_path):
    (tmp_path / "zéro").symlink_to(folder / "DATA/negative/test/zéro")
    found = cwps.evaluate(pool, "negative", tmp_path)
    assert found.confusion.sum(axis=1).tolist() == [0, 0, 15]
    assert found.per_class["two"] is None
    (tmp_path / "zero").mkdir()
    with pytest.raises(cwps.CwpsError, match="no class of this name, nearest is 'zéro'"):
        cwps.evaluate(pool, "negative", tmp_path)


def test_evaluate_takes_a_metric_and_arrays_of_ones_own(pool, folder):
    test = data.load(served.settings(folder / "DATA"), "negative").test
    metric = lambda outputs, batch: (batch["label"] == 1).astype("float32")
    assert cwps.evaluate(pool, "negative", test, metric=metric).metric == pytest.approx(1 / 3)
    arrays = {"image": np.zeros((4, 20, 30, 3), np.uint8), "label": np.array([0, 1, 2, 2])}
    assert cwps.evaluate(pool, "negative", arrays).confusion.sum() == 4
    with pytest.raises(cwps.CwpsError, match="label 3 of item 1"):
        cwps.evaluate(pool, "negative", {**arrays, "label": np.array([0, 3, 2, 2])})


@pytest.mark.parametrize("task", served.TASKS)
def test_an_export_read_back_gives_the_same_logits_and_says_what_it_is(pool, folder, tmp_path, task):
    file = tmp_path / f"{task}.safetensors"
    cwps.export(pool, task, file)
    model, variables = cwps.load_backbone("resnet8", file, image_size=12)
    test = data.load(served.settings(folder / "DATA"), task).test
    np.testing.assert_array_equal(
        Predictor(model)(variables, test, served.CONFIG.batch_size), cwps.predict(pool, task, test).logits
    )
    with safe_open(file, framework="numpy") as opened:
        said = opened.metadata()
    assert json.loads(said["class_names"]) == list(served.CLASSES)
    preparation = json.loads(said["preparation"])
    assert preparation == {
        "shape": [12, 12, 3],
        "pixel_mean": [0.485, 0.456, 0.406], "pixel_deviation": [0.229, 0.224, 0.225],
        "image_size": 12, "resize": 13, "crop": "center", "interpolation": "bilinear", "image_bits": 0,
    }  # fmt: skip
    assert (said["task"], said["backbone"], said["format"]) == (f"{task}@1", "resnet8", "pt")
    head = pool.effective(task)["params"]["head"]
    np.testing.assert_array_equal(load_file(file)["fc.weight"], np.asarray(head["kernel"]).T)


def test_a_disk_that_is_full_is_one_line_and_leaves_the_file_that_was_there(pool, tmp_path, monkeypatch):
    def full(arrays, path, metadata):
        pathlib.Path(path).write_bytes(b"half")
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device")

    file = tmp_path / "negative.safetensors"
    file.write_bytes(b"before")
    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    line = r"negative\.safetensors: cannot be written \(.*No space left on device\); make room there"
    with pytest.raises(cwps.CwpsError, match=line) as told:
        cwps.export(pool, "negative", file)
    assert "\n" not in str(told.value)
    assert file.read_bytes() == b"before" and [*tmp_path.iterdir()] == [file]


def test_pictures_of_a_task_whose_own_were_cut_to_boxes_are_said_to_be_taken_whole(
    folder, tmp_path, monkeypatch, caplog
):
    shutil.copytree(folder / "pool", tmp_path / "pool")
    index = tmp_path / "pool" / "index.json"
    values = json.loads(index.read_text())
    values["versions"][1]["record"]["learned_with"]["images"]["box"] = True
    index.write_text(json.dumps(values))
    boxed = cwps.Pool.open(tmp_path / "pool")
    monkeypatch.chdir(folder)
    for task in ("digits", "negative", "negative"):
        cwps.predict(boxed, task, test_files(folder, task)[:2])
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "negative@1 was learned from pictures cut to boxes; these are taken whole: cut them alike"
    ]


def test_nothing_answers_by_mistake(pool, folder, tmp_path):
    image = test_files(folder)[0]
    for task, told in (
        ("negativ", "no task 'negativ' in this pool; did you mean 'negative'"),
        ("negative@2", "did you mean 'negative@1'"),
        ("pretrained", "the model that tasks start from"),
        ("earlier", "stored without what it was learned with"),
    ):
        for ask in (
            lambda task=task: cwps.predict(pool, task, image),
            lambda task=task: cwps.evaluate(pool, task, folder / "DATA/negative/test"),
            lambda task=task: cwps.export(pool, task, tmp_path / "out.safetensors"),
        ):
            with pytest.raises(cwps.CwpsError, match=told) as raised:
                ask()
            assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_what_is_no_image_or_not_there_is_named(pool, folder, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    for given, told in (
        (tmp_path / "broken.png", r"broken.png: not a readable image \(not a JPEG"),
        (tmp_path / "away.png", "away.png: no such image"),
        (tmp_path / "*.jpg", r"\*.jpg: no such image"),
        (tmp_path / "empty", "empty: no such image"),
        ([], "no images are given"),
        (np.zeros((2, 5, 5, 3)), "images are float64"),
    ):
        with pytest.raises(cwps.CwpsError, match=told):
            cwps.predict(pool, "negative", given)
    for file, told in (
        ("a.pth", "name it"),
        ("none/a.safetensors", "no such folder"),
    ):
        with pytest.raises(cwps.CwpsError, match=told):
            cwps.export(pool, "negative", tmp_path / file)


def test_recorded_data_that_are_other_data_now_are_refused(pool, folder):
    file = folder / "DATA/digits/test/two/041.png"
    content = file.read_bytes()
    file.write_bytes((folder / "DATA/digits/test/two/042.png").read_bytes())
    with pytest.raises(cwps.CwpsError, match="the test data have other contents"):
        cwps.evaluate(pool, "digits")
    file.write_bytes(content)
    assert cwps.evaluate(pool, "digits").confusion.sum() == 45


def test_a_task_of_arrays_answers_for_arrays_as_its_model_takes_them(pool, folder, tmp_path):
    shutil.copytree(folder / "pool", tmp_path / "pool")
    own = cwps.Pool.open(tmp_path / "pool")
    images = np.random.default_rng(0).standard_normal((48, 12, 12, 3)).astype(np.float32)
    arrays = {"image": images, "label": np.arange(48, dtype=np.int32) % 3}
    task = cwps.TaskData(arrays, arrays, arrays, 3)
    cwps.learn_task(own, "arrays", models.create("resnet8", 3), task, config=served.CONFIG)
    wanted = Predictor(models.create("resnet8", 3))(own.effective("arrays"), arrays, served.CONFIG.batch_size)
    found = cwps.predict(own, "arrays", images)
    np.testing.assert_array_equal(found.logits, wanted)
    assert set(found.classes) <= {"0", "1", "2"}
    record = own.version("arrays").record
    assert cwps.evaluate(own, "arrays", task).metric == record["accuracy_when_learned"]
    assert cwps.evaluate(own, "arrays", arrays).metric == record["accuracy_when_learned"]
    for ask, told in (
        (lambda: cwps.predict(own, "arrays", test_files(folder)), "go into its model as they are"),
        (lambda: cwps.predict(own, "arrays", images[:, :8]), r"takes arrays \('n', 12, 12, 3\)"),
        (lambda: cwps.evaluate(own, "arrays"), "give its data here, too"),
    ):
        with pytest.raises(cwps.CwpsError, match=told):
            ask()
    cwps.export(own, "arrays", tmp_path / "arrays.safetensors")
    model, variables = cwps.load_backbone("resnet8", tmp_path / "arrays.safetensors", image_size=12)
    np.testing.assert_array_equal(Predictor(model)(variables, arrays, served.CONFIG.batch_size), wanted)


def test_a_backbone_of_ones_own_is_given_by_model(pool, folder, tmp_path):
    shutil.copytree(folder / "pool", tmp_path / "pool")
    index = tmp_path / "pool/index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "backbone": ""}))
    own, files = cwps.Pool.open(tmp_path / "pool"), test_files(folder)
    found = cwps.predict(own, "negative", files, model=models.create("resnet8", 3))
    np.testing.assert_array_equal(found.logits, cwps.predict(pool, "negative", files).logits)
    for ask in (
        lambda: cwps.predict(own, "negative", files),
        lambda: cwps.export(own, "negative", tmp_path / "a.safetensors"),
    ):
        with pytest.raises(cwps.CwpsError, match="a model of your own"):
            ask()


def test_a_bank_answers_images_as_predict_does(pool, folder):
    bank = cwps.TaskBank(pool, served.TASKS)
    files = {task: test_files(folder, task)[:3] for task in served.TASKS}
    for task, some in files.items():
        predicted, answered = cwps.predict(pool, task, some), bank(some, task=task)
        assert answered.class_names == predicted.class_names
        np.testing.assert_allclose(answered.logits, predicted.logits, atol=1e-5)
    pairs = [(file, task) for task, some in files.items() for file in some][::-2]
    given, tasks = zip(*pairs, strict=True)
    for (file, task), one in zip(pairs, bank(given, tasks=tasks), strict=True):
        np.testing.assert_allclose(one.logits, cwps.predict(pool, task, file).logits, atol=1e-5)
    scans = np.zeros((2, 20, 16, 3), np.uint8)
    whole = bank(scans, task="digits")
    np.testing.assert_allclose(whole.logits, cwps.predict(pool, "digits", scans).logits, atol=1e-5)
    assert bank.way({"digits": 1, "negative": 2}) in ("merged", "swapped", "mixed")
    with pytest.raises(cwps.CwpsError, match="task="):
        bank(scans)
    of_all = cwps.TaskBank(pool)
    assert "earlier" not in of_all.tasks and "stored without" in of_all.left_out["earlier"]
    with pytest.raises(cwps.CwpsError, match="stored without"):
        of_all(scans, task="earlier")
