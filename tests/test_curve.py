"""Several budgets from one training: the largest is what it is alone, and the smallest good one is kept."""

import dataclasses

import jax
import numpy as np
import pytest
from test_learn import CONFIG, brightest_third, task
from test_resume import StopAfter

import cwps_jax as cwps
from cwps_jax.errors import CwpsError, Preempted
from cwps_jax.train.curve import smallest
from cwps_jax.train.saves import Saving

BUDGETS = (0.3, 0.9, 0.6)
SEVERAL = dataclasses.replace(CONFIG, budget=1.0, budgets=BUDGETS, tolerance=0.0)


@pytest.fixture(scope="module")
def data():
    return task(brightest_third, classes=3)


@pytest.fixture(scope="module")
def trainer(tiny_model, data):
    return cwps.make_trainer(tiny_model, data, config=SEVERAL)


@pytest.fixture
def pool(tmp_path, tiny_variables, tiny_layout):
    return cwps.Pool.create(tmp_path / "pool", tiny_variables, tiny_layout)


def learned(pool, tiny_model, data, trainer, config, **options):
    trainer.network.begin_run()
    return cwps.learn_task(pool, "birds", tiny_model, data, config=config, trainer=trainer, **options)


@pytest.fixture
def stages(trainer, monkeypatch):
    """The stages that are run, each with its budget."""
    found, run_stage = [], trainer.run_stage

    def watched(course, point, *given):
        found.append((course.stages[point.stage].name, course.config.byte_budget))
        return run_stage(course, point, *given)

    monkeypatch.setattr(trainer, "run_stage", watched)
    return found


def test_the_stages_before_the_hard_one_are_trained_once(pool, tiny_model, data, trainer, stages):
    found = learned(pool, tiny_model, data, trainer, SEVERAL)
    once = [("warm-up", 0.9), ("soft", 0.9)]
    assert stages == [*once, ("hard", 0.9), ("hard", 0.6), ("hard", 0.3)]
    curve = found.record["curve"]
    assert [one["byte_budget"] for one in curve] == [0.9, 0.6, 0.3]
    assert all(0 < one["byte_ratio"] <= one["byte_budget"] for one in curve)
    (kept,) = (one for one in curve if one["kept"])
    assert kept["byte_ratio"] == pool.count("birds").byte_ratio
    assert kept["validation_accuracy"] == found.validation_metric
    best = max(one["validation_accuracy"] for one in curve)
    assert kept["byte_budget"] == min(
        one["byte_budget"] for one in curve if one["validation_accuracy"] == best
    )


@pytest.mark.parametrize(("method", "before"), [("cwps", ("warm-up", "hard")), ("finetune", ("finetune",))])
def test_budgets_that_set_the_bits_share_all_that_is_not_rounded(
    method, before, pool, tmp_path, tiny_model, data, trainer, stages
):
    options = {"row_bits": 0, "rounded_share": 0.25, "epochs": 4, "budgets": (0.2, 0.4)}
    coded = dataclasses.replace(SEVERAL, method=method, **options)
    found = learned(pool, tiny_model, data, trainer, coded)
    assert stages == [*((name, 0.4) for name in before), ("rounded", 0.4), ("rounded", 0.2)]
    assert [one["byte_budget"] for one in found.record["curve"]] == [0.4, 0.2]
    assert all(0 < one["byte_ratio"] <= one["byte_budget"] for one in found.record["curve"])
    # Nothing before the rounding depends on the budget of bytes: the smaller one is what it is alone, too.
    other = cwps.Pool.create(tmp_path / "other", pool.effective("pretrained"), pool.layout)
    alone = dataclasses.replace(coded, budgets=(), byte_budget=0.2)
    one = learned(other, tiny_model, data, trainer, alone)
    assert one.validation_metric == found.record["curve"][1]["validation_accuracy"]
    assert other.count("birds").byte_ratio == found.record["curve"][1]["byte_ratio"]


def test_the_largest_budget_is_what_it_is_alone(pool, tmp_path, tiny_model, data, trainer, monkeypatch):
    monkeypatch.setattr("cwps_jax.recorded.smallest", lambda curve, tolerance: 0)
    several = learned(pool, tiny_model, data, trainer, SEVERAL)
    other = cwps.Pool.create(tmp_path / "other", pool.effective("pretrained"), pool.layout)
    alone = dataclasses.replace(SEVERAL, budgets=(), byte_budget=0.9)
    one = learned(other, tiny_model, data, trainer, alone)
    jax.tree.map(np.testing.assert_array_equal, several.variables, one.variables)
    assert "curve" not in one.record


def test_a_training_that_is_stopped_before_the_hard_stages_goes_on(pool, tmp_path, tiny_model, data, trainer):
    saving = Saving(tmp_path / "saves", stopping=StopAfter(8))
    with pytest.raises(Preempted):
        learned(pool, tiny_model, data, trainer, SEVERAL, checkpoints=saving)
    on = learned(pool, tiny_model, data, trainer, SEVERAL, checkpoints=tmp_path / "saves")
    other = cwps.Pool.create(tmp_path / "other", pool.effective("pretrained"), pool.layout)
    whole = learned(other, tiny_model, data, trainer, SEVERAL)
    assert on.record["curve"] == whole.record["curve"]


@pytest.mark.parametrize(
    ("reached", "tolerance", "kept"),
    [((0.9, 0.9, 0.8), 0.0, 1), ((0.9, 0.8, 0.7), 0.0, 0), ((0.9, 0.8, 0.86), 0.05, 2), ((0.5,), 0.0, 0)],
)
def test_the_smallest_that_is_good_enough_is_kept(reached, tolerance, kept):
    curve = [
        {"byte_budget": budget, "validation_accuracy": one}
        for budget, one in zip((0.9, 0.6, 0.3), reached, strict=False)
    ]
    assert smallest(curve, tolerance) == kept


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"budgets": (0.1, 0.1)}, r"config.budgets = \(0.1, 0.1\): names 0.1 twice; give each once"),
        ({"budgets": (0.1, 1.5)}, "config.byte_budget = 1.5: must be in"),
        ({"byte_budget": 0.2}, "replaces config.byte_budget"),
        ({"tolerance": -0.1}, "config.tolerance = -0.1: must be at least 0"),
    ],
)
def test_budgets_that_cannot_be_are_one_line(changes, line):
    with pytest.raises(CwpsError, match=line) as refused:
        dataclasses.replace(SEVERAL, **changes)
    assert "\n" not in str(refused.value)


def test_a_budget_below_what_norms_cost_is_refused_before_a_step(pool, tiny_model, data, trainer):
    seen = []
    with pytest.raises(CwpsError, match="0.01"):
        learned(
            pool,
            tiny_model,
            data,
            trainer,
            dataclasses.replace(SEVERAL, budgets=(0.9, 0.01)),
            observe=seen.append,
        )
    assert not seen
