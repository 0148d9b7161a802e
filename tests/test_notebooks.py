"""examples/notebooks/: every notebook's code runs, and the outputs that are kept in it are of this code."""

import importlib.util
import json
import pathlib
import re

import matplotlib
import pytest

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = {path.stem: path for path in (ROOT / "examples" / "notebooks").glob("*.ipynb")}
_spec = importlib.util.spec_from_file_location("notebooks", ROOT / "scripts" / "notebooks.py")
script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(script)

# What takes the place of the cell with the tag "parameters", and what has to hold at the end.
RUNS = {
    "photos_to_export": (
        {"photos": 12, "source_epochs": 1, "epochs": 3},
        lambda names: names["pool"].tasks == ("negatives",) and names["file"].is_file(),
    ),
    "own_models": (
        {"epochs": 2},
        lambda names: 0 < names["pool"].count("negative").ratio <= 0.5,
    ),
    "comparing_methods": (
        {"epochs": 3},
        lambda names: all(
            one.stored.byte_ratio <= (0.1 if names["ways"][name].get("byte_budget") else 1.1)
            for name, one in names["learned"].items()
        ),
    ),
}


QUICKEST = "photos_to_export"


def read(name: str) -> dict:
    return json.loads(NOTEBOOKS[name].read_text())


def outputs(name: str) -> list[dict]:
    return [one for cell in read(name)["cells"] for one in cell.get("outputs", ())]


def test_every_notebook_has_a_test():
    assert NOTEBOOKS.keys() == RUNS.keys()


# What takes the time is compiling: one runs wherever the tests do, the others by `make test-slow`.
@pytest.mark.parametrize(
    "name",
    [name if name == QUICKEST else pytest.param(name, marks=pytest.mark.slow) for name in RUNS],
)
def test_its_code_runs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    matplotlib.use("agg")
    given, reached = RUNS[name]
    tagged = [cell["metadata"].get("tags") == ["parameters"] for cell in read(name)["cells"]]
    assert sum(tagged) == 1
    names: dict = {"__name__": "__main__"}
    for number, code in enumerate(script.code_of(read(name))):
        exec(compile(code, f"{name}, code cell {number}", "exec"), names)
        if given.keys() <= names.keys():  # the parameters have been set: smaller ones from here on
            names.update(given)
    assert reached(names)


@pytest.mark.parametrize("name", RUNS)
def test_its_outputs_are_of_its_code(name):
    notebook = read(name)
    assert notebook["metadata"][script.KEY] == script.code_sha256(notebook), "run: make notebooks"
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert len(outputs(name)) >= 3
    assert {one["output_type"] for one in outputs(name)} <= {"stream", "display_data", "execute_result"}
    assert {one.get("name") for one in outputs(name)} <= {"stdout", None}


@pytest.mark.parametrize("name", RUNS)
def test_its_outputs_are_small_and_tell_nothing_of_the_machine(name):
    told = json.dumps(outputs(name))
    assert len(told) < 100_000
    text = re.sub(r'"image/png": "[^"]*"', "", told)
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|usr|Users|private|var)\b|\bseconds\b", text)


@pytest.mark.parametrize("name", RUNS)
def test_its_links_lead_somewhere(name):
    text = "".join("".join(cell["source"]) for cell in read(name)["cells"] if cell["cell_type"] == "markdown")
    for target in re.findall(r"\]\((?!\w+:)([^)#\s]+)", text):
        assert (NOTEBOOKS[name].parent / target).exists(), target
