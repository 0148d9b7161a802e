"""Batch size and epochs of tasks with little data, and runs of several draws."""

import json
import statistics

import pytest
from rich.console import Console

from cwps_jax import TrainConfig, run
from cwps_jax.config import default_config, run_config
from cwps_jax.errors import CwpsError
from cwps_jax.finish import finish
from cwps_jax.train.small_data import fit_to_data

CONFIG = TrainConfig(batch_size=64, epochs=10)


def test_data_that_is_enough_changes_nothing():
    assert fit_to_data(CONFIG, 64, least_steps=10, few_shot=True) == CONFIG


@pytest.mark.parametrize(
    ("count", "multiple", "batch"),
    [(63, 1, 32), (32, 1, 32), (5, 1, 4), (63, 8, 32), (9, 8, 8), (50, 12, 48)],
)
def test_a_few_shot_batch_is_the_largest_that_fits(count, multiple, batch):
    assert fit_to_data(CONFIG, count, few_shot=True, multiple=multiple).batch_size == batch


@pytest.mark.parametrize("least", [1, 11, 100, 101])
def test_epochs_are_added_until_there_are_enough_steps(least):
    fitted = fit_to_data(CONFIG, 130, least_steps=least)
    steps = 130 // 64
    assert fitted.epochs * steps >= least
    assert fitted.epochs == 10 or (fitted.epochs - 1) * steps < least


def test_too_few_images_are_refused():
    with pytest.raises(CwpsError, match="batch_size = 64: the training data has only 63 images; take a smal"):
        fit_to_data(CONFIG, 63)
    with pytest.raises(CwpsError, match="only 7 images, fewer than the 8 that a batch needs"):
        fit_to_data(CONFIG, 7, few_shot=True, multiple=8)


def digits(**changes):
    config = default_config()
    config.update(
        {"backbone": "resnet8", "source": "digits", "source_epochs": 1, "epochs": 3, "batch_size": 64}
    )
    config.update({"tasks": ("loops", "thick"), "compare": ("probe",), "compilation_cache": "", **changes})
    return run_config(config.to_dict())


def test_draws_are_independent_runs_whose_rows_stand_together(tmp_path, capsys):
    config = digits(draws=2, shots=6, least_steps=4, overrides={"thick": {"budget": 0.3}})
    console = Console(width=120)
    run.learn(config, tmp_path, console)
    said = capsys.readouterr().out
    # 6 scans of 3 and of 10 classes, on 8 devices.
    assert "loops: config.batch_size = 16 instead of 64, for 18 training images" in said
    assert "thick: config.batch_size = 32 instead of 64, for 60 training images" in said
    assert said.count("config.epochs = 4 instead of 3") == 4
    results = finish(config, tmp_path, console)
    assert results == json.loads((tmp_path / "results.json").read_text())
    single = [json.loads((tmp_path / f"draw{draw}" / "results.json").read_text()) for draw in range(2)]
    for key in ("rows", "totals", "forgetting"):
        assert results[key] == single[0][key] + single[1][key]
        assert [{row["draw"] for row in one[key]} for one in single] == [{0}, {1}]
    assert [row["seed"] for row in results["rows"] if row["task"] == "loops"] == [0, 0, 1, 1]
    own, probe = ([row for row in results["rows"] if row["method"] == one] for one in ("cwps", "probe"))
    assert own[0]["accuracy"] != own[2]["accuracy"], "the draws are one run twice"
    assert [row["budget"] for row in own] == [1.0, 0.3] * 2
    assert [row["stored"] for row in (*own, *probe)] == [True] * 4 + [False] * 4
    # What is shown of them is mean and deviation over the draws.
    means = [statistics.mean(row["accuracy"] for row in own if row["draw"] == draw) for draw in range(2)]
    shown = f"{100 * statistics.mean(means):.1f}% ({100 * statistics.stdev(means):.1f})"
    assert shown in capsys.readouterr().out
    assert (tmp_path / "report" / "accuracy_bytes.png").is_file()
    # What is there is not trained again; another head than the stored one is refused.
    run.learn(config, tmp_path, console)
    assert capsys.readouterr().out.count("is in the pool already: skipped") == 4
