"""Image folders and archives; the shipped PACS config, shrunk, over files that the test draws."""

import io
import json
import pathlib
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image
from test_main import main

from cwps_jax import save_backbone
from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.data import folders, load
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


@pytest.fixture
def data_dir(tmp_path) -> pathlib.Path:
    """Two tasks: one in a folder, one in an archive."""
    folders._tasks.cache_clear()
    root = tmp_path / "data"
    write(root, files("photo"))
    write(root, {"photo/train/dog/Thumbs.db": b"x", "photo/train/dog/.hidden.png": b"x", "README.txt": b"x"})
    with zipfile.ZipFile(root / "A.zip", "w") as archive:
        for name, content in {**files("sketch"), "manifest.csv": b"x"}.items():
            archive.writestr(name, content)
    return root


def read(root: pathlib.Path, task: str, size: int = 16):
    return load("folders", task, data_dir=str(root), image_size=size)


@pytest.mark.parametrize("task", ["photo", "sketch"])
def test_folders_and_archives_give_the_same(data_dir, task):
    found = read(data_dir, task)
    assert found.classes == 2
    assert [len(split["label"]) for split in (found.train, found.validation, found.test)] == [36, 4, 12]
    assert found.train["image"].shape == (36, 16, 16, 3) and found.train["image"].dtype == np.float32
    # Classes are numbered by name; red images are dogs. Normalised back, channel by channel.
    for label, colour in enumerate(CLASSES.values()):
        images = found.test["image"][found.test["label"] == label] * folders.DEVIATION + folders.MEAN
        np.testing.assert_allclose(images.mean((0, 1, 2)), np.array(colour) / 255, atol=0.06)


def test_the_validation_split_does_not_depend_on_size_or_place(data_dir, tmp_path):
    def kept(root, size):
        images = read(root, "photo", size).validation["image"]
        return sorted(np.round(image.mean(), 2) for image in images)

    other = tmp_path / "other"
    write(other, files("photo"))
    assert kept(data_dir, 16) == kept(other, 16)
    np.testing.assert_allclose(kept(data_dir, 16), kept(data_dir, 32), atol=0.02)


def test_images_are_cut_to_the_middle_and_turned_upright(tmp_path):
    folders._tasks.cache_clear()
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = 255  # white in the middle third
    upright = io.BytesIO()
    Image.fromarray(pixels).save(upright, "PNG")
    turned, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 3  # upside down
    half = np.zeros((20, 20, 3), np.uint8)
    half[:10] = 255
    Image.fromarray(half).save(turned, "PNG", exif=exif)
    contents = {f"t/{split}/a/{n}.png": c.getvalue() for split in ("train", "test") for n, c in
                (("0", upright), ("1", turned))}  # fmt: skip
    write(tmp_path, contents)
    cut, flipped = read(tmp_path, "t", 20).test["image"] * folders.DEVIATION + folders.MEAN
    np.testing.assert_allclose(cut, 1, atol=1e-5)
    assert flipped[:9].mean() < 0.05 < 0.95 < flipped[11:].mean()


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (
            lambda root: write(root, {"photo/test/cat/0.png": png((0, 0, 0), 0)}),
            "class 'cat' is not in photo",
        ),
        (
            lambda root: write(root, {"photo/train/dog/z.png": b"no image"}),
            "photo/train/dog/z.png: not a read",
        ),
        (
            lambda root: write(root, {"photo/train/dog/z.png": png((0, 0, 0), 0)[:-50]}),
            "z.png: not a readable image",
        ),
        (lambda root: write(root, {"sketch/train/dog/0.png": png((0, 0, 0), 0)}), "'sketch' is in .* and in"),
        (lambda root: (root / "B.zip").write_bytes(b"PK not a zip"), "B.zip: not a readable zip"),
    ],
)
def test_what_is_wrong_in_the_folder_is_one_line(data_dir, fault, line):
    fault(data_dir)
    with pytest.raises(CwpsError, match=line):
        read(data_dir, "photo")


def test_what_is_not_there_is_named(data_dir, tmp_path):
    with pytest.raises(CwpsError, match="has no task 'clipart'; it has photo, sketch"):
        read(data_dir, "clipart")
    with pytest.raises(CwpsError, match="no such folder"):
        read(tmp_path / "nowhere", "photo")
    write(tmp_path / "half", {"photo/train/dog/0.png": png((0, 0, 0), 0)})
    with pytest.raises(CwpsError, match="task 'photo' has no folder 'test'"):
        read(tmp_path / "half", "photo")


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
    assert [task["name"] for task in results["tasks"]] == ["photo", "sketch"]
    assert all(task["params_ratio"] <= 0.45 for task in results["tasks"])
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
