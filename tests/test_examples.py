"""examples/: every script runs as it stands, and reaches what it claims."""

import pathlib
import runpy

import pytest

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def run(name: str, monkeypatch, folder: pathlib.Path) -> dict:
    """Runs a script as a program, and returns its names."""
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def test_every_example_has_a_test():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*REACHED}


REACHED = {
    "multi_label": lambda names: names["learned"].metric > 0.9 and names["logits"].shape == (3, 3),
    "regression": lambda names: -names["learned"].metric < 0.6 * names["guess"],
    "class_weights": lambda names: (
        names["results"]["weighted"][1] > names["results"]["plain"][1] + 0.02 > 0.3
    ),
    "segmentation": lambda names: (
        names["learned"].record["metric"] == "ink_iou"
        and names["evaluation"].metric > names["learned"].metric > 0.3
        and names["masks"].shape == (3, 8, 8)
    ),
    "whole_split_metric": lambda names: names["evaluation"].metric > 0.8 and names["learned"].metric > 0.8,
}


@pytest.mark.parametrize("name", REACHED)
def test_an_example_runs_and_reaches_what_it_claims(name, monkeypatch, tmp_path, capsys):
    names = run(name, monkeypatch, tmp_path)
    assert names["learned"].params_ratio <= names["config"].budget
    assert capsys.readouterr().out.count("\n") == 2
    assert REACHED[name](names)
