"""Data sets of TensorFlow Datasets: a small real one, prepared and read back, and mocks of the known ones."""

import io
import json
import os
import shutil
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from mocked_tfds import BOX, mocked_tfds
from PIL import Image

from cwps_jax.config import DataConfig
from cwps_jax.data.tfds_source import _check_box, _image_field, open_split, split_names
from cwps_jax.errors import CwpsError

pytest.importorskip("array_record")
tfds = pytest.importorskip("tensorflow_datasets")

SIZES = {"train": 40, "validation": 8, "test": 10}
NAMES = ["wren", "auk", "tit"]
OBJECT = (250, 20, 30)


def drawn(split, position):
    """Returns a JPEG or PNG of noise with a plain rectangle, its box from top and left, and its label."""
    rng = np.random.default_rng([list(SIZES).index(split), position])
    pixels = rng.integers(40, 200, (40, 60, 3), dtype=np.uint8)
    top, left = 4 * rng.integers(0, 4), 6 * rng.integers(0, 4)
    bottom, right = top + 4 * rng.integers(2, 5), left + 6 * rng.integers(2, 5)
    pixels[top:bottom, left:right] = OBJECT
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG" if position % 3 else "JPEG")
    return file.getvalue(), (top / 40, left / 60, bottom / 40, right / 60), int(rng.integers(3))


class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """birds: an image, a mask and a box. pair: two images. single: an image with labels without names."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("birds", "pair", "single")]  # noqa: RUF012

    def _info(self):
        image, label = tfds.features.Image(), tfds.features.ClassLabel(names=NAMES)
        features = {
            "birds": {
                "image": image,
                "mask": tfds.features.Image(shape=(None, None, 1)),
                "label": label,
                "bbox": tfds.features.BBoxFeature(),
                "kind": tfds.features.ClassLabel(num_classes=3),
                "note": tfds.features.Text(),
            },
            "pair": {"one": image, "other": image, "label": label},
            "single": {"photo": image, "kind": tfds.features.ClassLabel(num_classes=3)},
        }[self.builder_config.name]
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, manager):
        return {split: self._generate_examples(split) for split in SIZES}

    def _generate_examples(self, split):
        for position in range(SIZES[split]):
            image, box, label = drawn(split, position)
            record = dict.fromkeys(("image", "mask", "one", "other", "photo"), image)
            record |= {"label": label, "kind": 2 - label, "bbox": tfds.features.BBox(*box), "note": "tweet"}
            yield position, {key: record[key] for key in self.info.features}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data_dir with every configuration of the data set, prepared as array_record, three files a split."""
    data_dir = tmp_path_factory.mktemp("tfds")
    for config in Tiny.BUILDER_CONFIGS:
        Tiny(data_dir=data_dir, config=config.name, file_format="array_record").download_and_prepare(
            download_config=tfds.download.DownloadConfig(num_shards=3)
        )
    return data_dir


@pytest.fixture
def copied(prepared, tmp_path):
    """A copy of it that a test may break: the data_dir and the folder of "tiny/birds"."""
    shutil.copytree(prepared, tmp_path / "data")
    return tmp_path / "data", tmp_path / "data" / "tiny" / "birds" / "1.0.0"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def settings(data_dir, **values):
    return DataConfig(data="tfds", data_dir=str(data_dir), **{"dataset": "tiny/{task}", **values})


@pytest.mark.parametrize(
    ("split", "places"),
    [
        ("train", [("train", range(40))]),
        ("test", [("test", range(10))]),
        ("train+test", [("train", range(40)), ("test", range(10))]),
        ("train[:25%]", [("train", range(10))]),
        ("train[30:]+validation", [("train", range(30, 40)), ("validation", range(8))]),
    ],
)
def test_what_was_put_in_comes_back_bit_for_bit(prepared, split, places):
    source = open_split(settings(prepared), "birds", split)
    expected = [drawn(name, position) for name, positions in places for position in positions]
    assert [(source[index].image, source[index].label) for index in range(len(source))] == [
        (image, label) for image, _, label in expected
    ]
    assert list(source.classes) == NAMES
    assert {type(source[0].image), type(source[0].label)} == {bytes, int}


def test_the_box_holds_the_object(prepared):
    source = open_split(settings(prepared, box=True), "birds", "train")
    for index in range(1, 40, 3):  # the lossless ones
        image, box = Image.open(io.BytesIO(source[index].image)), source[index].box
        corners = [round(share * side) for share, side in zip(box, image.size * 2, strict=True)]
        assert image.crop(corners).getcolors() == [
            ((corners[2] - corners[0]) * (corners[3] - corners[1]), OBJECT)
        ]
    assert open_split(settings(prepared), "birds", "train")[0].box is None


def test_fields_with_other_names(prepared):
    source = open_split(settings(prepared, label="kind"), "single", "test")
    assert list(source.classes) == ["0", "1", "2"]
    for index in range(10):
        image, _, label = drawn("test", index)
        assert source[index] == (image, 2 - label, None, None)


def test_splits_and_what_a_user_finds_an_image_by(prepared):
    assert set(split_names(settings(prepared), "birds")) == set(SIZES)
    assert open_split(settings(prepared), "birds", "test").describe(3) == "tiny/birds/1.0.0 test, item 3"


def test_many_threads_read_what_one_reads(prepared):
    source = open_split(settings(prepared), "birds", "train+test")
    order = np.random.default_rng(0).integers(len(source), size=2000)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda index: source[int(index)], order))
    fresh = open_split(settings(prepared), "birds", "train+test")
    assert together == [fresh[int(index)] for index in order]


def prepared_as(folder, **identity):
    """Copies a prepared data set to where another name and version belong."""
    info = {**json.loads((folder / "dataset_info.json").read_text()), **identity}
    place = folder.parents[2] / info["name"] / info["configName"] / info["version"]
    shutil.copytree(folder, place)
    (place / "dataset_info.json").write_text(json.dumps(info))
    for file in place.glob("tiny-*"):
        file.rename(place / file.name.replace("tiny", info["name"]))


def test_the_newest_prepared_version_is_read_unless_one_is_named(copied):
    data_dir, folder = copied
    prepared_as(folder, version="1.10.0")
    assert open_split(settings(data_dir), "birds", "test").name == "tiny/birds/1.10.0 test"
    named = settings(data_dir, dataset="tiny/birds:1.0.0")
    assert open_split(named, "", "test").name == "tiny/birds/1.0.0 test"


def test_a_prepared_version_is_read_though_tfds_has_a_newer_one(copied):
    data_dir, folder = copied
    prepared_as(folder, name="domainnet", configName="real", version="0.9.0")
    source = open_split(settings(data_dir, dataset="domainnet/{task}"), "real", "test")
    assert (source.name, source[7].image) == ("domainnet/real/0.9.0 test", drawn("test", 7)[0])


def test_the_fingerprint_changes_with_what_is_read(copied):
    data_dir, folder = copied

    def fingerprint(split="train", task="birds", **values):
        return open_split(settings(data_dir, **values), task, split).fingerprint

    before = fingerprint()
    assert fingerprint() == before
    others = [
        fingerprint("test"),
        fingerprint("train[:5]"),
        fingerprint("train[:6]"),
        fingerprint(label="kind"),
    ]
    assert len({before, *others}) == 5
    file = next(folder.glob("*train*"))
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    assert fingerprint() != before


@pytest.mark.parametrize(
    ("values", "task", "split", "line"),
    [
        ({"dataset": "domainet/real"}, "", "train", "not known to .* did you mean domainnet"),
        ({"dataset": "domainnet/skech"}, "", "train", "domainnet has no 'skech'; did you mean sketch"),
        ({"dataset": "domainnet/{task}"}, "xyz", "train", "no 'xyz'; it has real, painting, clipart"),
        ({"dataset": "domainnet/real:9.9.9"}, "", "train", "cannot be loaded at version 9.9.9, only: 1.0.0"),
        ({"dataset": "domainnet/real/level=3"}, "", "train", "unexpected keyword argument 'level'"),
        ({"dataset": "huggingface:mnist"}, "", "train", "community data sets cannot be read"),
        ({"dataset": ""}, "", "train", "must be as in domainnet/real"),
        (
            {"dataset": "domainnet/{task}"},
            "real",
            "train",
            r"not prepared in .* tfds.builder\('domainnet/real'",
        ),
        ({"data_dir": "nowhere"}, "birds", "train", "config.data_dir = 'nowhere': no such folder"),
        ({}, "birds", "dev", "no split 'dev'; it has .*train"),
        ({}, "birds", "train+dev", r"no split 'train\+dev'"),
        ({}, "birds", "train[:5x]", "no split"),
        ({}, "birds", "train[:0%]", "is empty"),
        (
            {"label": "species"},
            "birds",
            "train",
            r"no ClassLabel .* has bbox \(BBoxFeature\), image \(Image\)",
        ),
        ({"label": "note"}, "birds", "train", "no ClassLabel"),
        ({"box": True}, "pair", "train", "2 images per record, none called 'image'"),
        ({"box": True, "label": "kind"}, "single", "train", "no bounding box 'bbox', only kind"),
    ],
)
def test_refusals_are_one_clear_line(prepared, values, task, split, line):
    data_dir = values.get("data_dir", prepared)
    with pytest.raises(CwpsError, match=line) as caught:
        open_split(settings(**{**values, "data_dir": data_dir}), task, split)
    assert "\n" not in str(caught.value)


def test_a_set_in_files_without_random_access_is_refused_with_the_command(copied):
    data_dir, folder = copied
    path = folder / "dataset_info.json"
    path.write_text(path.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(
        CwpsError, match="as tfrecord; convert it: .*--out_file_format=array_record"
    ) as caught:
        open_split(settings(data_dir), "birds", "train")
    assert str(caught.value).endswith(f"--dataset_version_dir={folder}")
    # Converted beside what there was: TFDS reads the files that it can.
    info = {**json.loads(path.read_text()), "alternativeFileFormats": ["array_record"]}
    path.write_text(json.dumps(info))
    assert open_split(settings(data_dir), "birds", "train")[7].image == drawn("train", 7)[0]


def test_what_tfds_itself_lacks_is_not_taken_for_a_file_format(prepared, monkeypatch):
    def lack(*arguments, **options):
        raise NotImplementedError("of TFDS")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "as_data_source", lack)
    with pytest.raises(NotImplementedError, match="of TFDS"):
        open_split(settings(prepared), "birds", "train")


@pytest.mark.parametrize("how", ["gone", "cut", "flipped"])
def test_a_broken_file_is_named_when_it_is_read(copied, how):
    data_dir, folder = copied
    source = open_split(settings(data_dir), "birds", "train")
    for file in folder.glob("*train*"):
        content = bytearray(file.read_bytes())
        if how == "gone":
            file.unlink()
        elif how == "cut":
            file.write_bytes(content[: len(content) // 2])
        else:
            file.write_bytes(bytes(255 - byte for byte in content[:1000]) + content[1000:])
    with pytest.raises(CwpsError, match="tiny/birds/1.0.0 train, item 0: cannot be read"):
        source[0]


def test_without_the_package(monkeypatch, prepared):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(CwpsError, match=r"'tfds' needs tensorflow_datasets.*pip install 'cwps_jax\[tfds\]'"):
        split_names(settings(prepared), "birds")


def test_floats_stored_as_pixels_are_no_image():
    depth = tfds.features.Image(shape=(None, None, 1), dtype=np.float32)
    assert _image_field({"depth": depth, "photo": tfds.features.Image()}, "set") == "photo"
    with pytest.raises(CwpsError, match="0 images"):
        _image_field({"image": depth}, "set")


def test_boxes_in_another_order_are_refused():
    _check_box({"bbox": tfds.features.BBoxFeature(bbox_format=None)}, "set")
    with pytest.raises(CwpsError, match="boxes as XYWH; must be REL_YXYX"):
        _check_box({"bbox": tfds.features.BBoxFeature(bbox_format="XYWH")}, "set")


def test_mocked_domains_can_be_read_without_tensorflow():
    config = settings("", dataset="domainnet/{task}")
    with mocked_tfds(6, classes=4):
        assert split_names(config, "real") == ("train", "test")
        train = open_split(config, "real", "train")
        assert (len(train), list(train.classes)) == (
            6,
            ["aircraft_carrier", "airplane", "alarm_clock", "ambulance"],
        )
        assert [train[index].label for index in range(6)] == [0, 1, 2, 3, 0, 1]
        for index in range(6):
            assert Image.open(io.BytesIO(train[index].image)).convert("RGB").size > (1, 1)
        again, test, sketch = (
            {open_split(config, task, split)[index].image for index in range(6)}
            for task, split in (("real", "train"), ("real", "test"), ("sketch", "train"))
        )
        assert again == {train[index].image for index in range(6)}
        assert len(again | test | sketch) == 18
        assert len(open_split(config, "real", "train[:50%]+test")) == 9
        assert open_split(config, "sketch", "train").fingerprint != train.fingerprint
        with pytest.raises(CwpsError, match="no split 'dev'; it has train, test"):
            open_split(config, "real", "dev")
    with mocked_tfds(2, classes=None):
        assert len(open_split(config, "real", "train").classes) == 345
    assert "tensorflow" not in sys.modules
    with pytest.raises(CwpsError, match="not prepared"):
        open_split(config, "real", "train")


@pytest.mark.parametrize("name", ["caltech_birds2011", "cars196"])
def test_mocked_sets_with_boxes(name):
    with mocked_tfds(3):
        record = open_split(settings("", dataset=name, box=True), "", "test")[2]
    top, left, bottom, right = BOX
    assert (record.box, record.label) == ((left, top, right, bottom), 2)
    assert Image.open(io.BytesIO(record.image)).mode == "RGB"  # the photo, not the grey mask
