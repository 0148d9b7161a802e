"""A study's grids: which cells they are, how these are called, and what is refused in one line."""

import dataclasses
import subprocess
import sys

import pytest
from studies import CONFIGS, small_study, study_config
from test_arrows import PACKAGE

from cwps_jax.errors import CwpsError
from cwps_jax.study import base_config, read_study
from cwps_jax.study.running import check_size

SHIPPED = sorted(path.stem for path in CONFIGS.glob("*.py"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_study_is_valid_and_says_how_to_run_it(name):
    study = read_study(study_config(name))
    assert len({cell.name for cell in study.cells}) == len(study.cells) >= 10
    documentation = (CONFIGS / f"{name}.py").read_text().split('"""')[1]
    for entry in ("Command", "Data", "Run time", "Reached"):
        assert sum(line.startswith(f"{entry}:") for line in documentation.splitlines()) == 1, entry
    assert f"--config configs/studies/{name}.py" in documentation


def test_a_study_is_the_union_of_its_products(tmp_path):
    grids = (
        {"method": ("cwps",), "budget": (0.2, 0.4), "seed": (0, 1)},
        {"method": ("cwps", "finetune"), "seed": (1, 2)},  # the base's budget is 0.4: seed 1 is there already
    )
    study = small_study(tmp_path, grids=grids)
    found = [(cell.config.method, cell.config.budget, cell.config.seed) for cell in study.cells]
    assert found == [
        *[("cwps", 0.2, 0), ("cwps", 0.2, 1), ("cwps", 0.4, 0), ("cwps", 0.4, 1)],
        *[("cwps", 0.4, 2), ("finetune", 0.4, 1), ("finetune", 0.4, 2)],
    ]
    assert study.most_cells == 8


def test_a_cell_has_one_method_its_settings_alone_and_one_draw(tmp_path):
    grids = (
        {"method": ("cwps",), "cwps.granularity": ("channel", "layer")},
        {"method": ("finetune",)},
    )
    study = small_study(
        tmp_path, grids=grids, baseline={"cwps": {"granularity": "layer"}, "method": "cwps"}, draws=3
    )
    channel, layer, finetune = study.cells
    assert [cell.config.train.method.granularity for cell in (channel, layer)] == ["channel", "layer"]
    assert [cell.values["cwps.granularity"] for cell in study.cells] == ["channel", "layer", None]
    assert all(cell.config.compare == () and cell.config.draws == 1 for cell in study.cells)
    assert finetune.config.settings.keys() <= {"finetune"}
    assert study.baseline == {"cwps.granularity": "layer", "method": "cwps"}


def test_references_between_keys_hold_in_each_cell():
    config = study_config("pacs_methods")
    config.study = {"grids": ({"image_size": (16, 32)},)}
    assert [(one.config.image_size, one.config.resize) for one in read_study(config).cells] == [
        (16, 16),
        (32, 32),
    ]


def test_a_cell_keeps_its_name_when_the_study_grows(tmp_path):
    before = small_study(tmp_path)
    grown = small_study(
        tmp_path, grids=(*before.grids, {"method": ("cwps",), "epochs": (3, 4), "seed": (0, 1, 2)})
    )
    assert {cell.name for cell in before.cells} < {cell.name for cell in grown.cells}
    assert len(grown.cells) == len(before.cells) + 4  # epochs 3 of seeds 0 and 1 were there


@pytest.mark.parametrize(
    ("study", "line"),
    [
        ({}, "config.study is not set: give a study file"),
        ({"grids": ()}, "config.study.grids is empty: give at least one"),
        ({"grids": ({},)}, r"config.study.grids\[0\] is empty"),
        ({"grids": ({"seed": ()},)}, r"config.study.grids\[0\].seed is empty"),
        ({"grids": ({"seed": (0, 1, 0)},)}, r"seed = \(0, 1, 0\): names 0 twice; give each value once"),
        ({"grids": ({"sed": (0,)},)}, r"config.study.grids\[0\].sed is not known; did you mean .*seed\?"),
        ({"grids": ({"cwps.lamda_": (0.1,)},)}, r"cwps.lamda_ is not known; did you mean .*cwps.lambda_\?"),
        ({"grids": ({"seed": 3},)}, r"config.study.grids\[0\].seed = 3: must be a tuple of values"),
        ({"grids": ({"draws": (1, 3)},)}, "draws: a cell is one run by one method; sweep method or seed"),
        ({"grids": ({"metric": ("macro_f1",)},)}, "config.metric = .macro_f1.: a study compares by accuracy"),
        (
            {"grids": ({"budget": (0.5, 2.0)},)},
            r"grids\[0\], the cell of {'budget': 2.0}: config.budget = 2.0",
        ),
        ({"grids": ({"row_bits": (4, 5)},)}, "'row_bits': 5}: config.row_bits = 5: choose one of 32, 16, 8"),
        ({"grids": ({"method": ("cwsp",)},)}, "cwsp"),
        (
            {"grids": ({"method": ("cwps", "probe"), "cwps.granularity": ("layer",)},)},
            "cwps.granularity: no setting of method 'probe', which the grid has too; give cwps a grid",
        ),
        ({"grids": ({"seed": (0,)},), "baseline": {"method": "probe"}}, "baseline.method: no grid sweeps it"),
        ({"grids": ({"seed": (0,)},), "titel": "x"}, "config.study.titel is not known; did you mean .*title"),
        ({"grids": ({"seed": (0,)},), "title": 3}, "config.study.title = 3: must be a string"),
    ],
)
def test_a_wrong_study_is_one_line(study, line):
    config = study_config("digits_small")
    config.study = study
    with pytest.raises(CwpsError, match=line) as error:
        _ = read_study(config).cells
    assert "\n" not in str(error.value)


def test_a_large_grid_has_to_be_wanted(tmp_path):
    study = small_study(
        tmp_path, grids=({"seed": tuple(range(101)), "epochs": tuple(range(1, 101))},), baseline={}
    )
    with pytest.raises(CwpsError, match="have 10,100 cells, more than 10,000: give --yes to run them all"):
        check_size(study, yes=False)
    check_size(study, yes=True)
    check_size(dataclasses.replace(study, grids=({"seed": (0,)},)), yes=False)


def test_a_base_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(CwpsError, match="no such config file"):
        base_config(tmp_path / "nothing.py")


def test_the_command_refuses_in_one_line_and_writes_nothing(tmp_path):
    file = tmp_path / "wrong.py"
    source = (CONFIGS / "digits_small.py").read_text()
    source = source.replace("pathlib.Path(__file__).parents[1]", f"pathlib.Path({str(CONFIGS.parent)!r})")
    file.write_text(source.replace("SEEDS = (0, 1, 2)", "SEEDS = tuple(range(5_000))"))
    command = [sys.executable, "-m", "cwps_jax.study", f"--config={file}", f"--workdir={tmp_path / 'w'}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "cells, more than 10,000: give --yes" in done.stderr and not (tmp_path / "w").exists()
