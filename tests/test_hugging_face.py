"""Data sets of the `datasets` package: made here, saved in each way there is, and read back."""

import dataclasses
import io
import pathlib
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from cwps_jax.config import DataConfig
from cwps_jax.data.check import check_task
from cwps_jax.data.hugging_face import open_split, split_names
from cwps_jax.data.load import load_task
from cwps_jax.data.source import Opener
from cwps_jax.errors import CwpsError

datasets = pytest.importorskip("datasets")

SIZES = {"train": 12, "test": 5}
NAMES = ["wren", "auk", "tit"]
CLASSES = datasets.ClassLabel(names=NAMES)


def encoded(split, position):
    pixels = np.random.default_rng([list(SIZES).index(split), position]).integers(0, 255, (9, 7, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG" if position % 2 else "JPEG")
    return file.getvalue()


def rows(split, *, labels=(0, 1, 2), label=CLASSES, images=None, **others):
    """Returns a split whose labels are repeated in turn; `others` are columns of one value."""
    count = SIZES[split]
    images = images or [{"bytes": encoded(split, position), "path": None} for position in range(count)]
    columns = {"image": images, "label": [labels[position % len(labels)] for position in range(count)]}
    features = {"image": datasets.Image(), "label": label}
    for name, (value, feature) in others.items():
        columns[name], features[name] = [value] * count, feature
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def both(**options):
    return datasets.DatasetDict({split: rows(split, **options) for split in SIZES})


def save(data, folder, how):
    """Writes a data set to a folder as "saved", "parquet" or "arrow" and returns its config."""
    if how == "saved":
        data.save_to_disk(folder)
    else:
        folder.mkdir()
        for split in data:
            if how == "parquet":
                data[split].to_parquet(folder / f"{split}-00000-of-00001.parquet")
            else:
                data[split].save_to_disk(folder / "rows")
                (folder / "rows" / "data-00000-of-00001.arrow").rename(folder / f"{split}.arrow")
                for left in (folder / "rows").iterdir():
                    left.unlink()
                (folder / "rows").rmdir()
    return settings(folder)


def settings(dataset, **values):
    return DataConfig(data="huggingface", dataset=str(dataset), **values)


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    def refuse(*arguments, **options):
        raise AssertionError("asked the network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    datasets.disable_progress_bars()


@pytest.mark.parametrize("how", ["saved", "parquet", "arrow"])
def test_what_was_put_in_comes_back_bit_for_bit(tmp_path, how):
    config = save(both(), tmp_path / "birds", how)
    assert set(split_names(config, "")) == set(SIZES)
    for split, places in {
        "train": [("train", 12)],
        "test": [("test", 5)],
        "test+train": [("test", 5), ("train", 12)],
    }.items():
        source = open_split(config, "", split)
        assert list(source.classes) == NAMES
        assert [tuple(source[index][:2]) for index in range(len(source))] == [
            (encoded(name, position), position % 3) for name, count in places for position in range(count)
        ]
    assert source.describe(3) == f"{tmp_path / 'birds'} test+train, row 3"
    assert (tmp_path / "cache").exists() == (how != "saved")  # which is read where it is


def test_one_data_set_without_splits_is_train_and_the_task_is_put_in_its_name(tmp_path):
    rows("test").save_to_disk(tmp_path / "birds-test")
    config = settings(tmp_path / "birds-{task}")
    assert split_names(config, "test") == ("train",)
    assert open_split(config, "test", "train")[4].image == encoded("test", 4)


def test_labels_that_are_text_are_numbered_by_the_training_data(tmp_path):
    text = datasets.Value("string")
    data = {
        "train": rows("train", labels=NAMES, label=text),
        "test": rows("test", labels=["tit"], label=text),
    }
    config = save(datasets.DatasetDict(data), tmp_path / "birds", "saved")
    task = loaded(config)
    assert classes_of(task.train) >= {"auk", "tit"} and classes_of(task.test) == {"tit"}
    data["test"] = rows("test", labels=["tit", "emu"], label=text)
    with pytest.raises(CwpsError, match=r"t: test has other classes than the training data: 'emu' is not am"):
        loaded(save(datasets.DatasetDict(data), tmp_path / "more", "saved"))


def loaded(config):
    small = dataclasses.replace(config, image_size=8, cache="none", cache_dir="")
    return load_task(Opener(open_split, split_names), small, "t")


def classes_of(split, names=("auk", "tit", "wren")):
    return {names[label] for label in split.fields["label"].tolist()}


def test_a_test_split_that_lists_the_classes_in_another_order_has_the_right_labels(tmp_path):
    """The same images with the same names, numbered otherwise: nothing else would be an accuracy."""
    other = datasets.ClassLabel(names=["tit", "wren", "auk"])
    labels = [other.str2int(CLASSES.int2str(position % 3)) for position in range(SIZES["test"])]
    data = datasets.DatasetDict({"train": rows("train"), "test": rows("test", labels=labels, label=other)})
    config = save(data, tmp_path / "birds", "saved")
    expected = [position % 3 for position in range(SIZES["test"])]
    assert loaded(config).test.fields["label"].tolist() == expected
    report = check_task(
        dataclasses.replace(config, cache_dir=""), "t", Opener(open_split, split_names), batch_size=2
    )
    assert not [one for one in report.findings if one.stops]
    assert next(one for one in report.splits if one.role == "test").largest == ("wren", 2)
    with pytest.raises(CwpsError, match="train and test cannot be joined, they differ in label"):
        open_split(config, "", "train+test")


def test_labels_that_are_numbers(tmp_path):
    number = datasets.Value("int32")
    data = {
        "train": rows("train", labels=[3, 0, 1], label=number),
        "test": rows("test", labels=[0], label=number),
    }
    config = save(datasets.DatasetDict(data), tmp_path / "birds", "parquet")
    source = open_split(config, "", "train")
    assert list(source.classes) == ["0", "1", "3"]
    assert [source[index].label for index in range(4)] == [2, 0, 1, 2]


def test_numbers_that_start_at_one_keep_their_names_in_numeric_order_and_the_note_says_so(tmp_path):
    number = datasets.Value("int32")
    data = {
        "train": rows("train", labels=[10, 9, 1], label=number),
        "test": rows("test", labels=[9, 1], label=number),
    }
    config = save(datasets.DatasetDict(data), tmp_path / "birds", "saved")
    task = loaded(config)
    assert task.classes == 3 and task.test.fields["label"].tolist() == [1, 0, 1, 0, 1]
    assert "3 classes; labels are stored as 3 numbers from 1 to 10, the order of the classes; " in task.note
    data["test"] = rows("test", labels=[9, 2], label=number)
    with pytest.raises(CwpsError, match="'2' is not among its 3 "):
        loaded(save(datasets.DatasetDict(data), tmp_path / "two", "saved"))
    data["train"] = rows("train", labels=[0, -1], label=number)
    with pytest.raises(CwpsError, match="the number -1 there, which marks images without a label"):
        loaded(save(datasets.DatasetDict(data), tmp_path / "negative", "saved"))
    data["train"] = rows("train", labels=range(100, 112), label=number)
    with pytest.raises(CwpsError, match="another value there for each of its 12 images; name a column of cl"):
        loaded(save(datasets.DatasetDict(data), tmp_path / "identifiers", "saved"))


def test_another_label_and_another_image(tmp_path):
    mask = {"bytes": b"mask", "path": None}
    data = both(mask=(mask, datasets.Image()), family=(1, datasets.ClassLabel(names=["x", "y"])))
    config = save(data, tmp_path / "birds", "saved")
    record = open_split(settings(config.dataset, label="family"), "", "test")[2]
    assert record[:2] == (encoded("test", 2), 1)
    renamed = data.remove_columns("mask").rename_column("image", "photo")
    assert open_split(save(renamed, tmp_path / "photo", "saved"), "", "test")[2].image == encoded("test", 2)
    with pytest.raises(CwpsError, match=r"2 columns of images, none of them 'image': .*mask \(Image\)"):
        open_split(save(data.rename_column("image", "photo"), tmp_path / "two", "saved"), "", "test")


def test_images_that_are_files_are_read_and_never_remembered(tmp_path):
    paths = [tmp_path / "birds" / "train" / NAMES[position % 3] / f"{position}.png" for position in range(6)]
    for position, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded("train", position))
    source = open_split(settings(tmp_path / "birds"), "", "train")
    found = {(source[index].image, source.classes[source[index].label]) for index in range(6)}
    assert found == {(path.read_bytes(), path.parent.name) for path in paths}
    assert source.fingerprint == ""
    paths[3].unlink()
    with pytest.raises(CwpsError, match=r"train, row \d: cannot read .*3\.png"):
        [source[index] for index in range(6)]


def test_the_fingerprint_changes_with_what_is_read(tmp_path):
    def fingerprint(data, name, split="train", **values):
        folder = tmp_path / name
        config = settings(folder) if folder.exists() else save(data, folder, "saved")
        return open_split(settings(config.dataset, **values), "", split).fingerprint

    data = both(other=(1, CLASSES))
    before = fingerprint(data, "birds")
    assert before and fingerprint(data, "birds") == before
    assert (
        len(
            {
                before,
                fingerprint(data, "birds", "test"),
                fingerprint(data, "birds", "train+test"),
                fingerprint(data, "birds", label="other"),
                fingerprint(both(labels=(0, 2), other=(1, CLASSES)), "labels"),
            }
        )
        == 5
    )


def test_many_threads_read_what_one_reads(tmp_path):
    config = save(both(), tmp_path / "birds", "saved")
    source = open_split(config, "", "train+test")
    order = np.random.default_rng(0).integers(len(source), size=2000)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda index: source[int(index)], order))
    fresh = open_split(config, "", "train+test")
    expected = [fresh[index] for index in range(len(fresh))]
    assert together == [expected[index] for index in order]


def test_a_name_on_the_hub_with_a_configuration(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *names, **options: asked.append((names, options)) or both()
    )
    assert len(open_split(settings("owner/{task}:small", data_dir=str(tmp_path)), "birds", "test")) == 5
    open_split(settings("owner/birds"), "", "test")
    assert asked == [
        (("owner/birds", "small"), {"cache_dir": str(tmp_path)}),
        (("owner/birds", None), {"cache_dir": None}),
    ]


@pytest.mark.parametrize(
    ("values", "split", "line"),
    [
        ({}, "dev", "no split 'dev'; it has train, test"),
        ({}, "train+dev", "no split 'dev'"),
        (
            {"label": "species"},
            "train",
            r"no such column, only image \(Image\), label \(ClassLabel\), weight",
        ),
        ({"label": "weight"}, "train", "has float32 there, not classes, numbers or text"),
        ({"box": True}, "train", "config.box: .* is not known to have bounding boxes"),
        ({"dataset": ""}, "train", "config.dataset is empty"),
        ({"dataset": "owner/name"}, "train", "cannot be loaded: Couldn't reach 'owner/name' on the Hub"),
        ({"dataset": "./nowhere"}, "train", "config.dataset = './nowhere' cannot be loaded"),
        ({"data_dir": "nowhere"}, "train", "config.data_dir = 'nowhere': no such folder"),
    ],
)
def test_refusals_are_one_clear_line(tmp_path, values, split, line):
    others = {"weight": (0.5, datasets.Value("float32"))}
    config = save(both(**others), tmp_path / "birds", "saved")
    with pytest.raises(CwpsError, match=line) as caught:
        open_split(settings(**{"dataset": config.dataset, **values}), "", split)
    assert "\n" not in str(caught.value)


def test_a_broken_file_is_refused(tmp_path):
    config = save(both(), tmp_path / "birds", "parquet")
    file = next(pathlib.Path(config.dataset).glob("train*"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CwpsError, match="birds' cannot be loaded: ") as caught:
        open_split(config, "", "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("column", ["image", "label"])
def test_an_empty_field_is_named(tmp_path, column):
    images = [{"bytes": encoded("test", position), "path": None} for position in range(4)]
    empty = {"image": {"images": [*images, None]}, "label": {"labels": [0, 1, 2, 0, None]}}[column]
    rows("test", **empty).save_to_disk(tmp_path / "birds")
    source = open_split(settings(tmp_path / "birds"), "", "train")
    assert source[3].label == 0
    with pytest.raises(CwpsError, match=f"train, row 4: {column!r} is empty"):
        source[4]


def test_without_the_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(CwpsError, match=r"pip install 'cwps_jax\[huggingface\]'"):
        split_names(settings(tmp_path), "")
