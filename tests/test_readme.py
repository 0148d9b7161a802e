"""README.md: its example runs as it stands, its tables are current, its links lead somewhere."""

import pathlib
import re
import subprocess
import sys

import chex
import jax
import numpy as np

import cwps_jax as cwps

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_example_runs_as_it_stands(tmp_path, tiny_model, tiny_variables, tiny_layout, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    rng = np.random.default_rng(0)
    split = {
        "image": rng.normal(size=(64, 8, 8, 1)).astype(np.float32),
        "label": np.arange(64, dtype=np.int32) % 3,
    }
    given = {
        "model": tiny_model,
        "key": jax.random.key(0),
        "images": split["image"][:2],
        "folder": tmp_path / "pool",
        "pretrained": tiny_variables,
        "data": cwps.TaskData(split, split, split, classes=3),
        "child": tiny_variables["params"],
        "masks": cwps.init_scores(tiny_layout),
    }
    # The example takes the defaults; thirty epochs are more than a test needs.
    monkeypatch.setitem(cwps.learn_task.__kwdefaults__, "config", cwps.TrainConfig(epochs=3, batch_size=16))
    exec(compile(example, "README.md", "exec"), given)
    chex.assert_trees_all_equal(given["same"], given["task"].variables)
    assert given["logits"].shape == (2, 3)
    wanted = {"conv1", "conv2", "norm", "head"}
    assert set(given["params"]) == wanted


def test_its_tables_are_those_of_the_committed_results():
    command = [sys.executable, str(ROOT / "benchmarks" / "render.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_its_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
