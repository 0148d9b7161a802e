"""What a study says: means and paired differences, fronts and transfer."""

import dataclasses
import json

import numpy as np
import pytest
from studies import PARAMETERS, TASKS, invented_cells, invented_result, small_study

from cwps_jax.study.pictures import draw_cost
from cwps_jax.study.summary import front, paired_difference, summarise
from cwps_jax.study.tables import continual_table, groups_table, markdown, tasks_table


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return invented_cells(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def study(cells):
    return cells[0]


@pytest.fixture(scope="module")
def finished(cells):
    return cells[1]


@pytest.fixture(scope="module")
def report(study, finished):
    return summarise(study, finished)


def test_an_interval_is_that_of_student():
    # R: t.test(c(1, 2, 4)): 2.333, from -1.461 to 6.128.
    found = paired_difference([(1, 0), (3, 1), (5, 1)])
    assert found == {
        "mean": pytest.approx(7 / 3),
        "low": pytest.approx(-1.461250, abs=1e-5),
        "high": pytest.approx(6.127916, abs=1e-5),
        "pairs": 3,
    }
    assert paired_difference([(2, 1)]) == {"mean": 1, "low": None, "high": None, "pairs": 1}
    assert paired_difference([])["mean"] is None


def test_an_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    drawn = (paired_difference([(one, 0.0) for one in rng.normal(0.3, 1, 4)]) for _ in range(2000))
    share = np.mean([one["low"] <= 0.3 <= one["high"] for one in drawn])
    assert 0.935 < share < 0.965


@pytest.mark.parametrize("seed", range(5))
def test_a_front_is_what_no_point_beats(seed):
    points = [tuple(one) for one in np.random.default_rng(seed).integers(0, 8, (20, 2)).tolist()]
    kept = front(points)
    for (cost, worth), on_front in zip(points, kept, strict=True):
        better = [p for p in points if p[0] <= cost and p[1] >= worth and p != (cost, worth)]
        assert on_front == (not better)
    assert any(kept)


def test_groups_are_means_over_seeds(report):
    together, alone = report["sections"]
    assert (together["tasks"], alone["tasks"]) == (sorted(TASKS), ["loops"])
    labels = [group["label"] for group in together["groups"]]
    assert labels == ["cwps, budget 0.1", "cwps, budget 0.4", "finetune"]
    small, large, finetune = together["groups"]
    assert small["accuracy"] == {"mean": pytest.approx(0.61), "deviation": pytest.approx(0.01)}
    assert large["tasks"]["loops"]["mean"] == pytest.approx(0.81) and large["seeds"] == [0, 1, 2]
    assert large["bytes_ratio"] == pytest.approx(400 / (4 * PARAMETERS))
    assert finetune["is_baseline"] and finetune["difference"] is None
    assert large["difference"]["mean"] == pytest.approx(-0.05) and large["difference"]["pairs"] == 3
    assert small["seconds"]["mean"] == 2.0 and report["seconds"] == 60.0 * 12


def test_tasks_are_compared_with_the_same_learned_alone(report):
    small, large, finetune = (group["continual"] for group in report["sections"][0]["groups"])
    assert large["forward_transfer"] == pytest.approx(0.05) and large["forward_pairs"] == 3
    assert small["forward_transfer"] is None and finetune["forward_transfer"] is None
    assert large["backward_transfer"] == large["forgetting"] == large["changed_tasks"] == 0


def test_what_is_lost_is_counted(study, finished):
    cell, values = finished[0]
    lost = json.loads(json.dumps(values))
    one = lost["results"]["forgetting"][0]
    one.update(accuracy_at_end=one["accuracy_when_learned"] - 0.2, logits_sha256_at_end="b")
    known = summarise(study, [(cell, lost)])["sections"][0]["groups"][0]["continual"]
    assert known["backward_transfer"] == pytest.approx(-0.1) and known["forgetting"] == pytest.approx(0.1)
    assert known["changed_tasks"] == 1


def test_bytes_add_up_from_the_pre_trained_model_on(report):
    small = report["sections"][0]["groups"][0]
    assert small["total_bytes"] == [4 * PARAMETERS, 4 * PARAMETERS + 100, 4 * PARAMETERS + 200]


def test_validation_alone_chooses(study, finished):
    turned = []
    for cell, values in finished:  # the best on validation is now the worst on the test set
        accuracy = values["results"]["rows"][0]["accuracy"]
        size = values["results"]["rows"][0]["bytes"]
        turned.append((cell, invented_result(cell, accuracy, 1 - accuracy, size)))
    groups = summarise(study, turned)["sections"][0]["groups"]
    assert [group["best"] for group in groups] == [True, False, False]
    assert [group["front"]["bytes"] for group in groups] == [True, False, False]
    groups = summarise(study, finished)["sections"][0]["groups"]
    assert [group["best"] for group in groups] == [False, False, True]
    assert [group["front"]["bytes"] for group in groups] == [True, True, True]


def test_a_group_that_lacks_seeds_or_has_no_partner_says_so(study, finished):
    partly = [one for one in finished if one[0].config.method != "finetune" and one[0].config.seed < 1]
    report = summarise(study, partly)
    group = report["sections"][0]["groups"][0]
    assert group["seeds"] == [0] and group["accuracy"]["deviation"] is None and group["difference"] is None
    assert report["cells"] == {"finished": 3, "asked": 12} and "3 of 12 cells" in markdown(report)


def test_tables_have_a_cell_for_each_column(report):
    for section in report["sections"]:
        for table in (groups_table, tasks_table, continual_table):
            header, rows = table(section)
            assert len(rows) == len(section["groups"]) and {len(row) for row in rows} == {len(header)}
    lines = markdown(report).splitlines()
    (line,) = [line for line in lines if line.startswith("| cwps, budget 0.4 |")]
    assert "| 81.0 (1.0) | 71.0 (1.0) | -5.0 [-5.0, -5.0] | 0.100x | 400 | 0.1000x |" in line


def test_without_a_baseline_no_column_speaks_of_one(study, finished):
    alone = dataclasses.replace(study, baseline={})
    assert "against the baseline" in markdown(summarise(study, finished)).lower()
    assert "baseline" not in markdown(summarise(alone, finished)).lower()


def test_a_picture_depends_on_the_report_alone(report, tmp_path):
    section = report["sections"][0]
    drawn = [draw_cost(section, section["groups"], "bytes").save(tmp_path / name) for name in "ab"]
    assert drawn[0].read_bytes() == drawn[1].read_bytes()


def test_points_of_different_groups_are_not_joined(report):
    section = report["sections"][0]
    page = draw_cost(section, section["groups"], "bytes")
    axes = page.axes.figure.axes[1]
    assert len(axes.containers) == len(section["groups"]) and axes.get_xscale() == "log"
    assert all(len(line.get_xdata()) == 1 for line in axes.lines)


def test_orders_and_depths_are_groups_of_one_problem(tmp_path):
    grids = (
        {"tasks": (TASKS, TASKS[::-1])},
        {"backbone": ("resnet20_cifar",)},
        {"method": ("cwps",), "cwps.granularity": ("layer",)},
        {"shots": (8,), "method": ("finetune",)},
    )
    study = small_study(
        tmp_path, grids=grids, baseline={"method": "cwps", "cwps": {"granularity": "channel"}}
    )
    report = summarise(study, [(cell, invented_result(cell, 0.5)) for cell in study.cells])
    together, fewer = report["sections"]
    assert together["title"] == "loops, negative; cwps; shots 16"
    assert fewer["title"] == "loops, negative; backbone resnet8; finetune; shots 8"
    assert together["backbone"] == "resnet8, resnet20_cifar" and [
        group["label"] for group in together["groups"]
    ] == [
        "negative > loops, backbone resnet8, cwps.granularity channel",
        "loops > negative, backbone resnet8, cwps.granularity channel",
        "negative > loops, backbone resnet20_cifar, cwps.granularity channel",
        "negative > loops, backbone resnet8, cwps.granularity layer",
    ]
    # Each is compared with its own order and depth, in channels.
    assert [group["is_baseline"] for group in together["groups"]] == [True, True, True, False]
    assert together["groups"][3]["difference"]["mean"] == 0 and fewer["groups"][0]["difference"] is None
    assert summarise(study, [])["sections"] == []


def test_augmentation_is_a_setting_of_learning_and_stretched_images_are_other_data(tmp_path):
    grids = (
        {"method": ("finetune",), "seed": (0, 1)},
        {"method": ("cwps",), "crop": ("random_resized",), "crop_area": ((0.5, 1.0),), "seed": (0, 1)},
        {"method": ("finetune",), "crop": ("stretch",)},
    )
    baseline = {"method": "finetune", "crop": "center", "crop_area": (0.08, 1.0)}
    study = small_study(tmp_path, grids=grids, baseline=baseline)
    together, stretched = summarise(study, [(cell, invented_result(cell, 0.5)) for cell in study.cells])[
        "sections"
    ]
    assert [group["method"] for group in together["groups"]] == ["finetune", "cwps"]
    assert together["groups"][1]["difference"]["mean"] == 0
    assert "crop stretch" in stretched["title"]
