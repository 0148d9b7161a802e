"""Image folders and archives; the shipped PACS config, shrunk, over files that the test draws."""

import io
import json
import os
import pathlib
import threading
import unicodedata
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from PIL import Image
from test_main import main

from cwps_jax import save_backbone
from cwps_jax.config import DataConfig
from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.data import folders, places
from cwps_jax.errors import CwpsError
from cwps_jax.models import create
from cwps_jax.store import Pool

CLASSES = {"dog": (255, 0, 0), "elephant": (0, 0, 255)}


def png(colour: tuple[int, int, int], seed: int, size: tuple[int, int] = (40, 36)) -> bytes:
    """Returns a noisy image of one colour."""
    rng = np.random.default_rng(seed)
    pixels = np.clip(np.array(colour) + rng.normal(0, 30, (*size, 3)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def files(task: str, train: int = 20, test: int = 6) -> dict[str, bytes]:
    """Returns {path: content} of a task whose classes are colours."""
    return {
        f"{task}/{split}/{label}/{number:03}.png": png(colour, 1000 * len(task) + 10 * number + len(label))
        for split, count in (("train", train), ("test", test))
        for label, colour in CLASSES.items()
        for number in range(count)
    }


def write(root: pathlib.Path, contents: dict[str, bytes]) -> None:
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def pack(path: pathlib.Path, contents: dict[str, bytes], **options) -> None:
    """Writes an archive, whatever is wrong with the names of its members."""
    with zipfile.ZipFile(path, "w", **options) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, content in contents.items():
            member = zipfile.ZipInfo(name.removesuffix("*"))
            member.compress_type = options.get("compression", zipfile.ZIP_STORED)
            archive.writestr(member, content)


def test_a_class_is_the_same_in_both_spellings_of_its_accent(tmp_path):
    for split, form in (("train", "NFC"), ("test", "NFD")):
        for label in ("caf\u00e9", "cab"):
            write(tmp_path, {f"t/{split}/{unicodedata.normalize(form, label)}/0.png": b"x"})
    settings = DataConfig(data="folders", data_dir=str(tmp_path))
    train, test = (folders.open_split(settings, "t", split) for split in ("train", "test"))
    assert train.classes == test.classes == ("cab", "caf\u00e9")
    assert [test[index] for index in range(2)] == [(b"x", 0, None, None), (b"x", 1, None, None)]
    write(tmp_path, {"t/test/caf\u00e9/0.png": b"x"})
    with pytest.raises(CwpsError, match="exists twice, in both Unicode spellings"):
        folders.open_split(settings, "t", "test")


def test_a_task_is_the_same_in_both_spellings_of_its_accent(tmp_path):
    stored, asked = (unicodedata.normalize(form, "\u00e9t\u00e9") for form in ("NFD", "NFC"))
    for split in ("train", "test"):
        write(tmp_path, {f"{stored}/{split}/cat/0.png": b"x"})
    settings = DataConfig(data="folders", data_dir=str(tmp_path))
    assert folders.split_names(settings, asked) == ("train", "test")
    assert len(folders.open_split(settings, asked, "test")) == 1


@pytest.fixture
def data_dir(tmp_path) -> pathlib.Path:
    """Two tasks: one in a folder, one in an archive."""
    root = tmp_path / "data"
    write(root, files("photo"))
    write(root, {"photo/train/dog/Thumbs.db": b"x", "photo/train/dog/.hidden.png": b"x", "README.txt": b"x"})
    write(root, {"photo/train/README.txt": b"x", "photo/.git/train/a": b"x", "extra/a.bin": b"x"})
    pack(
        root / "A.zip",
        {
            **files("sketch"),
            "manifest.csv": b"x",
            "__MACOSX/sketch/train/dog/._1": b"x",
            "sketch/test/a/": b"",
        },
        compression=zipfile.ZIP_DEFLATED,
    )
    return root


def settings(root: pathlib.Path, **changes) -> DataConfig:
    return DataConfig(data="folders", data_dir=str(root), **changes)


def read(root: pathlib.Path, task: str, split: str = "train", **changes) -> folders.FolderSource:
    return folders.open_split(settings(root, **changes), task, split)


@pytest.mark.parametrize("task", ["photo", "sketch"])
def test_folders_and_archives_give_what_was_stored(data_dir, task):
    contents = files(task)
    assert folders.split_names(settings(data_dir), task) == ("train", "test")
    for split in ("train", "test"):
        source = read(data_dir, task, split)
        assert source.classes == ("dog", "elephant")  # by name, and README.txt is none
        stored = {path: content for path, content in contents.items() if path.startswith(f"{task}/{split}/")}
        found = {source.describe(index): source[index] for index in range(len(source))}
        start = f"{data_dir}/" if task == "photo" else f"{data_dir / 'A.zip'}: "
        assert {name.removeprefix(start): record.image for name, record in found.items()} == stored
        for name, record in found.items():
            assert source.classes[record.label] == name.split("/")[-2]
        assert list(found) == sorted(found)
        assert source.name == f"{start}{task}/{split}"


def test_splits_are_joined_in_the_order_of_their_names(data_dir):
    joined, train, test = (read(data_dir, "photo", split) for split in ("test+train", "train", "test"))
    separate = [source[index] for source in (test, train) for index in range(len(source))]
    assert [joined[index] for index in range(len(joined))] == separate
    # Training on both: the classes are those of both.
    write(data_dir, {"photo/test/cat/0.png": png((0, 0, 0), 0)})
    assert read(data_dir, "photo", train_split="train+test").classes == ("cat", "dog", "elephant")


@pytest.mark.parametrize("task", ["photo", "sketch"])
def test_the_fingerprint_changes_with_whatever_is_stored_or_means_something_else(data_dir, task):
    def store(contents):
        if task == "photo":
            write(data_dir, contents)
        else:
            kept.update(contents)
            pack(data_dir / "A.zip", kept)

    kept = files("sketch")
    store({})
    seen = {read(data_dir, task).fingerprint, read(data_dir, task, "test").fingerprint}
    assert len(seen) == 2
    assert read(data_dir, task).fingerprint in seen
    for path in ("train/dog/000.png", "train/dog/new.png"):
        store({f"{task}/{path}": png((9, 9, 9), 1)})
        assert read(data_dir, task).fingerprint not in seen
        seen.add(read(data_dir, task).fingerprint)
    # A class that comes first gives every label of the test split another number.
    seen.add(read(data_dir, task, "test").fingerprint)
    store({f"{task}/train/ant/0.png": png((9, 9, 9), 1)})
    assert read(data_dir, task, "test").fingerprint not in seen


def test_the_fingerprint_of_an_archive_covers_its_checksums(data_dir):
    seen = set()
    for colour in (b"a", b"b"):
        pack(data_dir / "A.zip", {**files("sketch"), "sketch/test/dog/0.png": colour})
        os.utime(data_dir / "A.zip", (1, 1))
        places._listed.cache_clear()  # as in another process
        seen.add(read(data_dir, "sketch", "test").fingerprint)
    assert len(seen) == 2


def test_an_archive_is_listed_once_until_it_changes(data_dir):
    before = places.open_archive(str(data_dir / "A.zip"))
    read(data_dir, "photo"), read(data_dir, "sketch", "test")
    assert places.open_archive(str(data_dir / "A.zip")) is before
    pack(data_dir / "A.zip", files("sketch", train=3))
    assert len(read(data_dir, "sketch")) == 6


def test_threads_read_an_archive_as_it_is_stored(data_dir):
    source = read(data_dir, "sketch")
    expected = [source[index].image for index in range(len(source))]
    start = threading.Barrier(8)

    def look(turn: int) -> None:
        start.wait()
        for index in np.random.default_rng(turn).permutation(np.repeat(np.arange(len(source)), 20)):
            assert source[index].image == expected[index]

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(look, range(8)))


BLACK = png((0, 0, 0), 0)


@pytest.mark.parametrize(
    ("contents", "line"),
    [
        ({"photo/test/cat/0.png": BLACK}, "photo/test/cat/0.png: class 'cat' of test is not in train"),
        ({"photo/train/cat/Thumbs.db": BLACK}, "photo/train/cat: empty class"),
        ({"photo/test/README.txt": b"", "photo/validation/a/.x": b""}, "split 'validation' is empty"),
        ({"photo/train/dog/more/0.png": BLACK}, "photo/train/dog/more: a folder in a class folder"),
        ({"sketch/train/dog/0.png": BLACK}, "'sketch' is in .*data and in .*A.zip: remove one"),
        ({"B.zip": b"PK not a zip"}, "B.zip: not a readable zip"),
    ],
)
def test_what_is_wrong_in_the_folder_is_one_line(data_dir, contents, line):
    write(data_dir, contents)
    with pytest.raises(CwpsError, match=line) as caught:
        for task in ("photo", "sketch"):
            for split in folders.split_names(settings(data_dir), task):
                read(data_dir, task, split)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_named(data_dir, tmp_path):
    with pytest.raises(CwpsError, match="has no task 'clipart'; it has extra, photo, sketch"):
        read(data_dir, "clipart")
    for task in ("..", "photo/train", "", ".git"):
        with pytest.raises(CwpsError, match="has no task"):
            read(data_dir, task)
    with pytest.raises(CwpsError, match="config.data_dir = '.*nowhere': no such folder"):
        read(tmp_path / "nowhere", "photo")
    with pytest.raises(CwpsError, match="config.data_dir is empty: name the folder"):
        folders.open_split(DataConfig(data="folders"), "photo", "train")
    with pytest.raises(CwpsError, match="photo has no split 'dev'; it has train, test"):
        read(data_dir, "photo", "train+dev")
    with pytest.raises(CwpsError, match="extra has neither splits nor lists.*make_split_lists.py"):
        read(data_dir, "extra")


def test_a_file_that_can_no_longer_be_read_is_named(data_dir):
    source = read(data_dir, "photo")
    (data_dir / "photo/train/dog/000.png").unlink()
    with pytest.raises(CwpsError, match=r"photo/train/dog/000.png: cannot be read \(No such file"):
        source[0]
    source = read(data_dir, "sketch")
    content = bytearray((data_dir / "A.zip").read_bytes())
    content[content.index(b"sketch/train/dog/000.png") + 200] ^= 1
    (data_dir / "A.zip").write_bytes(content)
    with pytest.raises(CwpsError, match="A.zip: sketch/train/dog/000.png: cannot be read"):
        source[0]


def test_links_may_not_leave_the_folder(data_dir, tmp_path):
    write(tmp_path / "outside", {"train/dog/1.png": BLACK, "1.png": BLACK})
    dog = data_dir / "photo/train/dog"
    (dog / "inside.png").symlink_to(dog / "000.png")
    (data_dir / "photo/validation").symlink_to(data_dir / "photo/test", target_is_directory=True)
    (data_dir / "moved").symlink_to(data_dir / "photo", target_is_directory=True)
    assert len(read(data_dir, "photo")) == len(read(data_dir, "moved")) == 41
    assert len(read(data_dir, "photo", "validation")) == 12
    for place, target, task in (
        (dog / "out.png", "1.png", "photo"),
        (data_dir / "photo/train/cat", "train/dog", "photo"),
        (data_dir / "whole", "", "whole"),
    ):
        place.symlink_to(tmp_path / "outside" / target)
        with pytest.raises(CwpsError, match=f"{place}: leads out of {data_dir}, to .*outside"):
            read(data_dir, task)
        place.unlink()
    # Loops, links to nothing and pipes: neither followed for ever nor waited for.
    for make, line in (
        (
            lambda path: path.symlink_to(data_dir / "photo/train"),
            "dog/loop/dog: a folder in|dog/loop: a folder in",
        ),
        (lambda path: path.symlink_to(path), "loop: cannot be read"),
        (lambda path: path.symlink_to(data_dir / "nothing"), "loop: neither a file nor a folder"),
        (os.mkfifo, "loop: neither a file nor a folder"),
    ):
        make(dog / "loop")
        with pytest.raises(CwpsError, match=line):
            read(data_dir, "photo")
        (dog / "loop").unlink()


def test_the_pacs_config_from_weights_to_results(data_dir, tmp_path):
    model = create("resnet20_cifar", 10)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    rng = np.random.default_rng(0)
    variables = unflatten(
        {
            path: np.abs(rng.normal(0.5, 0.2, leaf.shape)).astype(np.float32)
            if leaf.ndim == 1
            else rng.normal(0, 0.1, leaf.shape).astype(np.float32)
            for path, leaf in flatten(shapes).items()
        }
    )
    (data_dir / "weights").mkdir()
    save_backbone(data_dir / "weights" / "resnet20_cifar10.safetensors", "resnet20_cifar", variables)
    flags = ("--config.tasks=('photo','sketch')", "--config.epochs=3", "--config.batch_size=12")
    given = (*flags, f"--config.data_dir={data_dir}", "--config.compare=()", "--config.image_size=16")
    done = main(tmp_path / "w", *given, config="configs/pacs.py")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "w" / "results.json").read_text())
    assert [row["task"] for row in results["rows"]] == ["photo", "sketch"]
    assert all(row["params_ratio"] <= 0.45 for row in results["rows"])
    stored = Pool.open(tmp_path / "w" / "pool").effective("pretrained")
    for path, leaf in flatten(stored).items():
        np.testing.assert_array_equal(leaf, flatten(variables)[path])
    again = main(tmp_path / "w", *given, "--config.backbone=resnet32_cifar", config="configs/pacs.py")
    assert again.returncode == 2 and "does not fit" not in again.stderr
    assert "made with backbone 'resnet20_cifar'" in again.stderr


def test_without_data_the_pacs_config_says_so(tmp_path):
    done = main(tmp_path / "w", config="configs/pacs.py")
    assert (
        done.returncode == 2
        and done.stderr == "cwps: config.data_dir is empty: name the folder of the data\n"
    )
