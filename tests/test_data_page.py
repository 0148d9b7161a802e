"""docs/data.md: its code runs as it stands, it names every key, and the findings that it shows are real."""

import itertools
import pathlib
import re

import numpy as np
import pytest
from test_check import png

import cwps_jax as cwps
from cwps_jax import data
from cwps_jax.config import DataConfig, default_config, run_config
from cwps_jax.data.check import check_task

PAGE = (pathlib.Path(__file__).parent.parent / "docs" / "data.md").read_text()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> pathlib.Path:
    """Makes DATA with two tasks of two classes, 20 and 5 images each, in the folder that the code runs in."""
    seeds = itertools.count()
    tasks, splits = ("photo", "sketch"), (("train", 20), ("test", 5))
    for task, (split, count), name in itertools.product(tasks, splits, ("cat", "dog")):
        for number in range(count):
            file = tmp_path / "DATA" / task / split / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(next(seeds)))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "DATA"


def test_its_code_runs_as_it_stands(capsys):
    config = default_config()
    config.weights = "w.safetensors"
    names: dict = {"config": config}
    tasks = []
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        # What is remembered of DATA belongs to the test.
        exec(block.replace('data_dir="DATA", ', 'data_dir="DATA", cache_dir="", '), names)
        tasks += [names["task"]] if "task = " in block else []
    arrays, pixels, photos = tasks
    batch = pixels.train.read(np.arange(4), np.random.default_rng(0).random((4, pixels.train.draws)))
    assert batch["image"].shape == (4, 32, 32, 3) and pixels.classes == 4
    assert isinstance(arrays, cwps.TaskData) and len(arrays.train) + len(arrays.validation) == 80
    assert capsys.readouterr().out == "2 36 4 10\n" and photos.classes == 2
    made = run_config(config.to_dict())
    assert made.for_task("cub").images.box and made.for_task("sketch").epochs == 60


def test_it_names_every_key():
    assert [key for key in DataConfig.__dataclass_fields__ if not re.search(rf"[`.]{key}\b", PAGE)] == []


def test_the_findings_that_it_shows_are_those_that_the_check_gives(folder):
    shown = re.findall(r"^(?:problem|warning): .*", PAGE, re.MULTILINE)
    (folder / "sketch/train/cat/3.png").write_bytes(b"")
    (folder / "photo/test/cat/0.png").write_bytes((folder / "photo/train/cat/0.png").read_bytes())
    settings = DataConfig(data="folders", data_dir="DATA", cache_dir="")
    found = [
        f"{'problem' if finding.stops else 'warning'}: {task}: {finding.line()}"
        for task in ("photo", "sketch")
        for finding in check_task(settings, task, data.SOURCES["folders"], batch_size=32).findings
    ]
    assert found == shown
