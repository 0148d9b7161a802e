"""Cells: run once, measured from their pools, the same as alone, and refused where their files disagree."""

import copy
import dataclasses
import io
import json
import pathlib
import subprocess
import sys

import pytest
from rich.console import Console
from studies import small_study
from test_arrows import PACKAGE

from cwps_jax import run
from cwps_jax.errors import CwpsError
from cwps_jax.finish import finish
from cwps_jax.store.lock import locked
from cwps_jax.study import running
from cwps_jax.study.cells import cell_path, finished_cells, read_cell
from cwps_jax.study.report import write_report
from cwps_jax.study.running import run_study
from cwps_jax.study.shared import Shared

TIMES = ("seconds", "peak_memory_bytes")


def quiet():
    return Console(file=io.StringIO(), width=200)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small study in its workdir, run."""
    root = tmp_path_factory.mktemp("study")
    study = small_study(root / "cache")
    console = quiet()
    run_study(study, root / "w", console)
    write_report(study, root / "w", console)
    return study, root / "w", console.file.getvalue()


@pytest.fixture
def own(finished, monkeypatch):
    """The same, whose cell files a test may change: they are put back after it. Nothing may be learned."""
    study, workdir, _ = finished
    before = {path: path.read_text() for path in (workdir / "cells").iterdir()}
    monkeypatch.setattr(running, "learn_task", lambda *given, **named: pytest.fail("a cell was run again"))
    yield study, workdir
    for path in (workdir / "cells").iterdir():
        path.unlink()
    for path, text in before.items():
        path.write_text(text)


def rows_of(results):
    return [{key: value for key, value in row.items() if key not in TIMES} for row in results["rows"]]


def test_every_cell_has_a_file_that_tells_all_of_it(finished):
    study, workdir, told = finished
    assert {path.stem for path in (workdir / "cells").iterdir()} == {cell.name for cell in study.cells}
    for cell in study.cells:
        values = read_cell(cell_path(workdir, cell))
        assert values["config"]["seed"] == cell.config.seed and values["config"]["compare"] == []
        assert tuple(values["data"]) == cell.config.tasks == tuple(values["epochs_seconds"])
        assert all(len(one) == 64 for own in values["data"].values() for one in own.values())
        rows = values["results"]["rows"]
        assert [row["task"] for row in rows] == list(cell.config.tasks)
        assert {row["method"] for row in rows} == {cell.config.method}
        assert all(0 < values["epochs_seconds"][row["task"]] <= values["seconds"] for row in rows)
        assert all(row["stored"] and 0 <= row["accuracy"] <= 1 and row["bytes"] > 0 for row in rows)
        assert f" {cell.name}: validation " in told
    assert not list((workdir / "pools").iterdir())
    assert len(list((workdir / "pretrained").glob("*/index.json"))) == 2  # a seed each, shared by its cells
    assert "6/6 " in told


def test_a_cell_gives_what_a_run_of_main_gives_alone(finished, tmp_path):
    study, workdir, _ = finished
    cell = study.cells[1]  # its trainer had learned others before, and others after
    assert cell.config.method == "cwps" and len(cell.config.tasks) == 2
    run.learn(cell.config, tmp_path / "w", quiet())
    alone = finish(cell.config, tmp_path / "w", quiet())
    beside = read_cell(cell_path(workdir, cell))["results"]
    assert rows_of(beside) == rows_of(alone)
    hashes = [[one["logits_sha256_at_end"] for one in each["forgetting"]] for each in (beside, alone)]
    assert hashes[0] == hashes[1]


def test_a_finished_study_runs_nothing_again(own):
    study, workdir = own
    console = quiet()
    run_study(study, workdir, console)
    assert "cells" not in console.file.getvalue()


def test_what_is_missing_is_run_and_a_failure_does_not_stop_the_others(finished, monkeypatch):
    study, workdir, _ = finished
    first, second = study.cells[0], study.cells[4]
    before = {cell.name: cell_path(workdir, cell).read_text() for cell in (first, second)}
    learn = running.learn_task

    def failing(pool, *given, config, **named):
        if config.seed == first.config.seed and first.name in str(pool.folder):
            raise FloatingPointError("the loss is nan in epoch 1, step 1")
        return learn(pool, *given, config=config, **named)

    for cell in (first, second):
        cell_path(workdir, cell).unlink()
    console = quiet()
    with monkeypatch.context() as patched:
        patched.setattr(running, "learn_task", failing)
        with pytest.raises(CwpsError, match=f"1 of 6 cells could not be run, see above: {first.name}"):
            run_study(study, workdir, console)
    told = console.file.getvalue()
    assert f"5/6 {first.name}: not run: the loss is nan" in told and f"6/6 {second.name}: validation" in told
    assert not cell_path(workdir, first).exists()
    run_study(study, workdir, quiet())
    for cell in (first, second):
        now = read_cell(cell_path(workdir, cell))["results"]
        assert rows_of(now) == rows_of(json.loads(before[cell.name])["results"])


def changed(workdir, cell, change):
    path = cell_path(workdir, cell)
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda one: one.update(format=2), "a cell of format 2; format 1 is read: remove it"),
        (lambda one: one.pop("results"), "no 'results' in it; remove it, and the study computes it again"),
        (lambda one: one["results"]["rows"][0].pop("bytes"), "no 'bytes' in it; remove it"),
        (
            lambda one: one["config"].update(epochs=99),
            r"computed with another config: epochs \(was 99, is 3\); use another --workdir",
        ),
        (
            lambda one: one["config"]["settings"]["cwps"].update(lambda_=9.0),
            r"another config: settings.cwps.lambda_ \(was 9.0, is ",
        ),
        (
            lambda one: one["results"]["versions"].update(jax="0.0.1"),
            r"cwps_seed0-\w+.json and cwps_seed1-\w+.json disagree on versions: jax \(was '0.0.1', is ",
        ),
        (
            lambda one: one["data"]["loops"].update(test="0" * 64),
            r"disagree on the test data of 'loops'; remove the one that is wrong",
        ),
        (
            lambda one: one["data"]["negative"].update(train="0" * 64),
            r"cwps_seed0-\w+.json and finetune_seed0-\w+.json disagree on the train data of 'negative'",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(own, change, line):
    study, workdir = own
    changed(workdir, study.cells[0], change)
    for refused in (run_study, write_report):
        with pytest.raises(CwpsError, match=line) as error:
            refused(study, workdir, quiet())
        assert "\n" not in str(error.value)


def test_a_file_that_is_no_json_is_refused(own):
    study, workdir = own
    cell_path(workdir, study.cells[0]).write_text("not JSON")
    with pytest.raises(CwpsError, match="not the result of a cell; remove it"):
        finished_cells(workdir, study.cells)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda one: one["results"]["versions"].update(jax="0.0.1"), r"jax \(was '0.0.1', is "),
        (lambda one: one["data"]["loops"].update(test="0" * 64), "the test data of 'loops' have other"),
    ],
)
def test_all_cells_of_a_former_state_are_refused_where_they_would_be_continued(own, change, line):
    study, workdir = own
    for cell in study.cells:  # they agree with each other
        changed(workdir, cell, change)
    finished_cells(workdir, study.cells)
    with pytest.raises(CwpsError, match=f"computed with other versions or data: {line}"):
        run_study(study, workdir, quiet())


def test_where_things_lie_is_no_other_config(own, tmp_path):
    study, workdir = own
    moved = copy.copy(study.cells[0])
    config = dataclasses.replace(moved.config, cache_dir=str(tmp_path), metrics=("jsonl",))
    moved = dataclasses.replace(moved, config=config)
    assert len(finished_cells(workdir, [moved])) == 1


def test_several_processes_share_a_study_cell_by_cell(own, monkeypatch):
    study, workdir = own
    cell = study.cells[0]
    cell_path(workdir, cell).unlink()
    with locked(workdir / ".running" / cell.name, "this cell is being run"):
        run_study(study, workdir, quiet())  # as if another process ran it: it is left to that
    assert not cell_path(workdir, cell).exists()

    def reached(*given, **named):
        raise CwpsError("it is run now")

    monkeypatch.setattr(running, "learn_task", reached)
    with pytest.raises(CwpsError, match=f"1 of {len(study.cells)} cells could not be run"):
        run_study(study, workdir, quiet())  # nobody else runs it any more


def test_the_command_writes_the_report_of_what_is_finished(own):
    study, workdir = own
    cell_path(workdir, study.cells[0]).unlink()
    file = workdir.parent / "small.py"
    here = str(pathlib.Path(__file__).parent)
    file.write_text(
        f"import pathlib, sys\nsys.path.append({here!r})\nfrom studies import small_config\n\n"
        f"def get_config():\n    return small_config(pathlib.Path({study.base.cache_dir!r}))\n"
    )
    command = [sys.executable, "-m", "cwps_jax.study", f"--config={file}", f"--workdir={workdir}", "--report"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads((workdir / "report.json").read_text())
    assert report["cells"] == {"finished": 5, "asked": 6}
    assert all(f"Report: {workdir / name}" in done.stdout for name in ("report.html", "report.md"))
    assert not cell_path(workdir, study.cells[0]).exists()


def test_cells_of_one_model_share_trainer_and_data(tmp_path):
    grids = (
        {"method": ("cwps", "finetune"), "seed": (0, 1)},
        {"dtype": ("bfloat16",)},
        {"tasks": (("loops",),), "seed": (0,)},
    )
    first, second, other_method, _, other_type, alone = small_study(tmp_path, grids=grids).cells
    shared = Shared(tmp_path / "pretrained")
    (one, bench), (two, same), (three, _) = map(
        shared.prepared, (first.config, second.config, other_method.config)
    )
    assert one.trainer is two.trainer is three.trainer and same is bench
    assert one.make_model(10) is two.make_model(10)
    assert shared.prepared(alone.config)[0].trainer is one.trainer
    loaded = shared.load(first.config, "loops")
    assert loaded is shared.load(other_method.config, "loops") is shared.load(alone.config, "loops")
    assert loaded is not shared.load(second.config, "loops")  # another draw of few images
    assert shared.prepared(other_type.config)[0].trainer is not one.trainer
