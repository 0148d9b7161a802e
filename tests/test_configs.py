"""Every shipped config and each of its variants: imported, shrunk, and trained by the code that main runs."""

import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import pathlib

import jax
import numpy as np
import pytest
from mocked_tfds import mocked_tfds
from PIL import Image, ImageOps
from rich.console import Console
from test_main import main

from cwps_jax import models, run, save_backbone
from cwps_jax.config import RunConfig, run_config
from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.errors import CwpsError
from cwps_jax.finish import finish
from cwps_jax.methods import find, with_settings
from cwps_jax.prepare import load_task
from cwps_jax.store import Pool

FOLDER = pathlib.Path(__file__).parent.parent / "configs"
CLASSES = 4
# What stands in for a backbone in a shrunk run, by the first letters of its name.
STAND_INS = {"resnet": "resnet8", "vit": "vit_nano4", "densenet": "densenet121"}
QUIET = Console(file=io.StringIO())


def module_of(name: str):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config_of(name: str):
    """Returns the ConfigDict of "pacs" or "domainnet:resnet50"."""
    file, *variant = name.split(":", 1)
    return module_of(file).get_config(*variant)


FILES = sorted(path.stem for path in FOLDER.glob("*.py"))
NAMES = [
    name
    for file in FILES
    for name in (file, *(f"{file}:{variant}" for variant in getattr(module_of(file), "VARIANTS", ())))
]
FEW = [f"fewshot:{name},2" for name in NAMES if name != "fewshot"]


@pytest.mark.parametrize("name", [*NAMES, *FEW])
def test_a_config_is_valid(name):
    config = run_config(config_of(name).to_dict())
    backbone = models.find(config.backbone)
    assert config.overrides.keys() <= {*config.tasks, config.source}
    side = config.image_size
    if config.data != "digits":
        assert side and side % 16 == 0 and side <= backbone.image_size
    for task in config.tasks:
        images = config.for_task(task).images
        assert images.shorter_side >= side
        assert images.data == "digits" or images.data == "folders" or images.dataset


@pytest.mark.parametrize("file", FILES)
def test_a_config_says_how_to_run_it(file):
    lines = module_of(file).__doc__.splitlines()
    for entry in ("Command", "Data", "Run time", "Reached"):
        assert sum(line.startswith(f"{entry}:") for line in lines) == 1, entry
    assert f"configs/{file}.py" in next(line for line in lines if line.startswith("Command:"))


@pytest.mark.parametrize(
    "name",
    [
        "domainnet:resnet9",
        "imagenet_to_sketch:",
        "decathlon:x",
        "fewshot:pacs",
        "fewshot:pacs,0",
        "fewshot:pacs,ten",
        "fewshot:nope,5",
        "fewshot:fewshot,5",
        "fewshot:domainnet:resnet9,5",
    ],
)
def test_an_unknown_variant_is_one_line(name):
    with pytest.raises(CwpsError, match="has no variant .*one of") as error:
        config_of(name)
    assert "\n" not in str(error.value)


def test_an_unknown_variant_is_one_line_of_main_too(tmp_path):
    done = main(tmp_path / "w", config="configs/domainnet.py:resnet9")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("cwps: ") and "choose one of resnet34, resnet50" in done.stderr


def test_a_few_shot_config_is_its_base_with_few_images():
    names = ("decathlon:resnet34", "fewshot:decathlon:resnet34,16")
    base, few = (run_config(config_of(name).to_dict()) for name in names)
    assert (few.shots, few.draws) == (16, 3) and few.least_steps > 0
    assert dataclasses.replace(few, shots=0, draws=1, least_steps=0) == base
    assert [few.for_task(task).shots for task in few.tasks] == [16] * len(few.tasks)


def write_images(root: pathlib.Path, task: str) -> None:
    """Draws a task in folders: three training and two test images of each class, no two the same."""
    for split, count in (("train", 3), ("test", 2)):
        for number in range(count * CLASSES):
            rng = np.random.default_rng((*task.encode(), len(split), number))
            path = root / task / split / f"class{number % CLASSES}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(path)


def write_weights(path: pathlib.Path, backbone: str) -> None:
    """Writes random weights of the backbone's published size."""
    model, size = models.create(backbone, 10), models.find(backbone).image_size
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, size, size, 3), np.float32))
    rng = np.random.default_rng(0)
    leaves = {
        path: np.abs(rng.normal(0.5, 0.2, leaf.shape)) if leaf.ndim == 1 else rng.normal(0, 0.1, leaf.shape)
        for path, leaf in flatten(shapes).items()
    }
    save_backbone(path, backbone, unflatten({path: leaf.astype(np.float32) for path, leaf in leaves.items()}))


def one_of_each_kind(config) -> tuple[str, ...]:
    """Returns the first task of every set of overridden keys, and at least two tasks."""
    kinds = {frozenset(config.overrides.get(task, ())): task for task in reversed(config.tasks)}
    chosen = {*kinds.values(), *(config.tasks[:2] if len(kinds) == 1 else ())}
    return tuple(task for task in config.tasks if task in chosen)


def shrunk(name: str, root: pathlib.Path, **changes) -> RunConfig:
    """Returns the config with all changed that makes a run large, and nothing else."""
    config = config_of(name)
    config.backbone = next(small for start, small in STAND_INS.items() if config.backbone.startswith(start))
    config.tasks = one_of_each_kind(config)
    config.cache_dir = str(root / "cache")
    if config.weights:
        config.weights = str(root / "weights.safetensors")
    config.shots = min(config.shots, 2)
    if config.data == "digits":
        config.shots, config.batch_size = 16, 64  # of embedded data there are no fewer
    else:
        config.data_dir, config.image_size, config.batch_size = str(root), 16, 2 * CLASSES
    config.epochs, config.source_epochs, config.norm_batches = 3, 1, 1
    config.draws, config.least_steps = min(config.draws, 2), min(config.least_steps, 1)
    # Those alone of which it sets something.
    config.compare = tuple(
        name for name in config.compare if with_settings(name, config[name].to_dict()) != find(name)()
    )
    config.update(changes)
    return run_config(config.to_dict())


# Variants that are one run when shrunk are trained once.
TRAINED = sorted({repr(shrunk(name, pathlib.Path())): name for name in reversed(NAMES)}.values())
# Trained from data to results: below, by the commands of docs/get_started.md in tests/test_pages.py, and by
# tests/test_main.py.
WHOLE = ("domainnet", "photos", "digits", "digits_vit")
# The splits that a data set of TFDS has. Decathlon's "test" has no labels: here it is not there at all.
SPLITS = {
    "domainnet": ("train", "test"),
    "imagenet_to_sketch": ("train", "validation", "test"),
    "decathlon": ("train", "validation"),
}


@contextlib.contextmanager
def small_data(name: str, config: RunConfig):
    """Within it the weights and images of a shrunk config are there, of few images in four classes."""
    root = pathlib.Path(config.data_dir)
    if config.weights:
        write_weights(root / "weights.safetensors", config.backbone)
    for task in config.tasks:
        if config.for_task(task).data == "folders":
            write_images(root, task)
    with contextlib.ExitStack() as stack:
        if config.data == "tfds":
            stack.enter_context(mocked_tfds(3 * CLASSES, classes=CLASSES, splits=SPLITS[name.split(":")[0]]))
        yield


@pytest.fixture
def small_densenet(monkeypatch) -> None:
    """DenseNet has no small member: densenet121 is one with two blocks of a layer each."""
    small = {"block_sizes": (1, 1), "growth": 8, "stem_width": 8}
    backbone = dataclasses.replace(models.BACKBONES["densenet121"], settings=small)
    monkeypatch.setitem(models.BACKBONES, "densenet121", backbone)


# Transformers compile for half a minute and more; digits_vit, the smallest, is trained in every test run.
LONG = ("digits_methods:vit", "imagenet_to_sketch:vit_b16")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in LONG else name
        for name in TRAINED
        if name not in WHOLE
    ],
)
def test_a_config_trains(name, tmp_path, small_densenet):
    config = shrunk(name, tmp_path)
    with small_data(name, config):
        run.learn(config, tmp_path / "w", QUIET)
    pools = sorted((tmp_path / "w").glob("**/pool"))
    assert len(pools) == config.draws
    for folder in pools:
        pool = Pool.open(folder)
        assert pool.tasks == config.tasks
        before = flatten(pool.effective("pretrained")["params"])
        for task in config.tasks:
            after = flatten(pool.effective(task)["params"])
            moved = [not np.array_equal(after[path], before[path]) for path in before if "head" not in path]
            assert any(moved) and pool.count(task).ratio <= config.budget


def test_each_data_set_is_read_as_it_was_published(tmp_path):
    config = shrunk("imagenet_to_sketch", tmp_path)
    with small_data("imagenet_to_sketch", config):
        birds, flowers, paintings = (load_task(config, task, None) for task in config.tasks)
        assert birds.train.source[0].box is not None and flowers.train.source[0].box is None
    assert config.tasks == ("cub", "flowers", "wikiart")
    # Six flowers of each class in two splits, less one for choices; three paintings in one split, less one.
    assert (len(flowers.train), len(flowers.validation)) == (5 * CLASSES, CLASSES)
    assert (len(paintings.train), len(paintings.validation)) == (2 * CLASSES, CLASSES)


def test_pacs_images_are_whole_squares(tmp_path):
    config = shrunk("pacs", tmp_path, image_size=12)
    write_images(tmp_path, "photo")
    split = load_task(dataclasses.replace(config, tasks=("photo",)), "photo", None).test
    batch = split.read(np.arange(2), None)
    files = sorted((tmp_path / "photo" / "test" / "class0").iterdir())
    for image, file in zip(batch["image"], files, strict=True):
        with Image.open(file) as square:
            np.testing.assert_array_equal(image, ImageOps.fit(square, (12, 12), Image.Resampling.BICUBIC))


def learn_and_finish(config: RunConfig, workdir: pathlib.Path) -> dict:
    run.learn(config, workdir, QUIET)
    finish(config, workdir, QUIET)
    return json.loads((workdir / "results.json").read_text())


def check_results(results: dict, config: RunConfig) -> None:
    own = [row for row in results["rows"] if row["method"] == config.method]
    assert tuple(row["task"] for row in own) == config.tasks
    for row in own:
        assert 0 <= row["accuracy"] <= 1 and 0 < row["params_ratio"] <= config.budget
    assert len(results["forgetting"]) == len(config.tasks)
    for row in results["forgetting"]:
        assert row["logits_sha256_when_learned"] == row["logits_sha256_at_end"]


def test_domainnet_from_tfds_to_results(tmp_path):
    config = shrunk("domainnet", tmp_path)
    with small_data("domainnet", config):
        check_results(learn_and_finish(config, tmp_path / "w"), config)


@pytest.mark.skipif("CWPS_TEST_DATA" not in os.environ, reason="needs the real images in CWPS_TEST_DATA")
def test_domainnet_from_an_archive_to_results(tmp_path):
    """The same config over PACS, as `--config.data=folders` takes it."""
    changes = {"data": "folders", "data_dir": os.environ["CWPS_TEST_DATA"], "shots": 10, "batch_size": 64}
    config = shrunk("domainnet", tmp_path, tasks=("photo", "art_painting"), **changes)
    write_weights(tmp_path / "weights.safetensors", config.backbone)
    check_results(learn_and_finish(config, tmp_path / "w"), config)
