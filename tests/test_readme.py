"""README.md: its example runs as it stands, its tables are current, it is short."""

import pathlib
import re
import runpy
import sys

import chex
from conftest import random_split

import cwps_jax as cwps

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_example_runs_as_it_stands(tmp_path, tiny_model, tiny_variables):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    split = random_split(64)
    given = {
        "model": tiny_model,
        "images": split["image"][:2],
        "folder": tmp_path / "pool",
        "pretrained": tiny_variables,
        "data": cwps.TaskData(split, split, split, classes=3),
    }
    # Thirty epochs, the default, are more than a test needs.
    exec(example.replace("budget=0.4", "budget=0.4, epochs=3, batch_size=16"), given)
    chex.assert_trees_all_equal(given["variables"], given["task"].variables)
    assert len(given["answers"]) == 2
    assert given["task"].params_ratio <= 0.4


def test_its_tables_are_those_of_the_committed_results(monkeypatch):
    """And those of docs/: it ends with a message where a page is not current."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(sys, "argv", ["render.py", "--check"])
    runpy.run_path(str(ROOT / "benchmarks" / "render.py"), run_name="__main__")


def test_it_is_short():
    words = re.findall(r"[A-Za-z]\w*", re.sub(r"\]\([^)]*\)", "]", README))
    assert len(words) < 800, "move it to a page in docs/"
