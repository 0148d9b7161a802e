"""The rows of results.json: their means, files of format 1, and the tables that are made of them."""

import importlib
import io
import json
import pathlib
import re
import statistics
import sys

import pytest
from invented import accuracy, invented, methods
from rich.console import Console

from cwps_jax.errors import CwpsError
from cwps_jax.methods import METHODS
from cwps_jax.report.draws import together
from cwps_jax.report.rows import (
    ADDED,
    KEYS,
    ROW,
    Spread,
    make_row,
    names,
    read_results,
    spread,
    stored_bytes,
    total,
    totals,
)
from cwps_jax.report.table import show_results

ROOT = pathlib.Path(__file__).parent.parent
COMMITTED = ROOT / "docs" / "results"
sys.path.insert(0, str(ROOT / "benchmarks"))  # its files import each other by their own names
runs = importlib.import_module("runs")


def written(folder: pathlib.Path, values: object) -> pathlib.Path:
    path = folder / "results.json"
    path.write_text(json.dumps(values))
    return path


def shown(results: dict, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    show_results(results, console)
    return console.file.getvalue()


def cells_of(text: str, first: str) -> list[list[str]]:
    """Returns the cells of every line of the tables whose first cell this is."""
    lines = [[cell.strip() for cell in re.split("[│┃|]", line)[1:-1]] for line in text.splitlines()]
    return [cells[1:] for cells in lines if cells and cells[0] == first]


def test_means_are_over_tasks_first_and_deviations_over_draws():
    rows = invented(3, draws=3)["rows"]
    values = [[accuracy(task, 1, draw) for task in ("birds", "cars")] for draw in range(3)]
    means = [statistics.mean(one) for one in values]
    found = spread(rows, "method1", "accuracy")
    assert found.mean == pytest.approx(statistics.mean(means))
    assert found.deviation == pytest.approx(statistics.stdev(means))
    birds = [one[0] for one in values]
    assert spread(rows, "method1", "accuracy", "birds").mean == pytest.approx(statistics.mean(birds))
    assert spread(rows, "method1", "accuracy", "birds").deviation == pytest.approx(statistics.stdev(birds))
    single = invented(3)["rows"]
    assert spread(single, "method2", "bytes") == Spread(3000, None)


@pytest.mark.parametrize("missing", ["a value", "a task", "a draw"])
def test_there_is_no_mean_over_less_than_the_others_have(missing):
    rows = invented(2, draws=2)["rows"]
    if missing == "a value":
        rows[-1]["accuracy"] = None
    else:
        key, value = ("task", "cars") if missing == "a task" else ("draw", 1)
        rows = [row for row in rows if row["method"] == "method0" or row[key] != value]
    assert spread(rows, "method1", "accuracy") is None
    assert spread(rows, "method0", "accuracy") is not None
    assert spread(rows, "nobody", "accuracy") is None


def test_totals_count_the_pretrained_model_once_a_draw():
    results = invented(2, draws=2)
    assert results["totals"] == [
        {"method": method, "draw": draw, "params_ratio": 1 + 2 * ratio, "bytes": 2 * size}
        for draw in range(2)
        for method, ratio, size in (("method0", 0.25, 1000), ("method1", 0.5, 2000))
    ]
    assert total(results, "method1") == Spread(2.0, 0.0)
    results["rows"][1]["bytes"] = None
    assert [one["bytes"] for one in totals(results["rows"])] == [2000, None, 2000, 4000]


def test_draws_stand_together_in_their_order():
    whole = invented(2, draws=3)
    parts = [
        {**whole, **{key: [one for one in whole[key] if one["draw"] == draw] for key in KEYS[-3:]}}
        for draw in range(3)
    ]
    assert together(parts) == whole


def test_what_is_written_is_read(tmp_path):
    results = invented(3, draws=2)
    assert read_results(written(tmp_path, results)) == results


@pytest.mark.parametrize("name", ["omniglot_seed0", "pacs_lower_rate_seed0"])
def test_a_run_of_format_1_becomes_rows_with_the_same_figures(name):
    old = json.loads((COMMITTED / f"{name}.json").read_text())
    new = read_results(COMMITTED / f"{name}.json")
    assert set(new) == {*KEYS, *ADDED} and new["format"] == 2
    assert all(set(row) == set(ROW) for row in new["rows"])
    assert names(new["rows"], "task") == [task["name"] for task in old["tasks"]]
    assert names(new["rows"], "method") == ["cwps", "finetune", "probe"]
    find = {(row["task"], row["method"]): row for row in new["rows"]}
    same = [key for key in ROW if key in old["tasks"][0] and key != "accuracy"]
    assert {"seed", "bytes", "relation", "lambda", "flops_per_step", "params_ratio"} <= set(same)
    for task in old["tasks"]:
        own = find[task["name"], "cwps"]
        assert {key: own[key] for key in same} == {key: task[key] for key in same}
        assert (own["stored"], own["draw"], own["bits"], own["trained"]) == (True, 0, 8 * task["bytes"], None)
        assert own["parameters"] / old["backbone_parameters"] == pytest.approx(task["params_ratio"])
        for method, key in {
            "cwps": "accuracy",
            "finetune": "finetune_accuracy",
            "probe": "probe_accuracy",
        }.items():
            assert find[task["name"], method]["accuracy"] == task[key]
        known = ("task", "method", "draw", "seed", "stored", "accuracy", "epochs")
        compared = find[task["name"], "probe"]
        assert not compared["stored"]
        assert all(compared[key] is None for key in ROW if key not in known), "format 1 does not say that"
    assert total(new, "cwps").mean == pytest.approx(old["total_params_ratio"])
    assert total(new, "finetune") is None
    for one, before in zip(new["forgetting"], old["forgetting"], strict=True):
        assert one == {**before, "method": "cwps", "draw": 0}


def test_a_method_that_format_1_did_not_compare_has_no_row(tmp_path):
    old = json.loads((COMMITTED / "pacs_lower_rate_seed0.json").read_text())
    old["tasks"][0]["probe_accuracy"] = 0.0
    for task in old["tasks"]:
        task["finetune_accuracy"] = None
    rows = read_results(written(tmp_path, old))["rows"]
    assert names(rows, "method") == ["cwps", "probe"] and rows[1]["accuracy"] == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**invented(1), "format": 3}, "results of format 3; formats 2 and 1 are read"),
        ({"tasks": []}, "no 'format' in it"),
        ({key: value for key, value in invented(1).items() if key != "totals"}, "no 'totals' in it"),
        ({**invented(1), "rows": [{"task": "birds"}]}, "no 'method' in it"),
        ({"format": 1, "method": "cwps", "tasks": []}, "no 'forgetting' in it"),
        ([1, 2], "not a results.json"),
    ],
)
def test_what_is_not_understood_is_refused_in_a_line(tmp_path, values, message):
    path = written(tmp_path, values)
    with pytest.raises(CwpsError, match=f"^{re.escape(str(path))}: .*{re.escape(message)}") as refused:
        read_results(path)
    assert "\n" not in str(refused.value)


def test_files_that_are_no_results_are_refused(tmp_path):
    with pytest.raises(CwpsError, match="no such file"):
        read_results(tmp_path / "results.json")
    (tmp_path / "results.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(CwpsError, match="not a results.json"):
        read_results(tmp_path / "results.json")
    with pytest.raises(CwpsError, match="read each draw's own results.json"):
        read_results(COMMITTED / "pacs_10_shots.json")


def test_a_row_has_every_key_and_no_other():
    assert make_row({"task": "birds", "classes": 3}) == {key: None for key in ROW} | {"task": "birds"}


@pytest.mark.parametrize("count", [1, 3, 14])
@pytest.mark.parametrize("draws", [1, 2])
def test_the_tables_say_what_the_rows_say(count, draws):
    results = invented(count, draws)
    rows, text = results["rows"], shown(results)
    assert max(map(len, text.splitlines())) <= 100 and "…" not in text

    def cell(method: str, task: str | None = None) -> str:
        found = spread(rows, method, "accuracy", task)
        return f"{100 * found.mean:.1f}%" + (f" ({100 * found.deviation:.1f})" if draws > 1 else "")

    beside = methods(count) if count <= 3 else ["method0"]
    for task in ("birds", "cars"):
        ((*accuracies, kept, size), *rest) = [cells[: len(beside) + 2] for cells in cells_of(text, task)]
        assert accuracies == [cell(method, task) for method in beside]
        assert (kept, size, rest) == ("0.250x", "1,000", [])
    assert "pretrained 75%" in text if draws == 1 else "pretrained" not in text
    assert cells_of(text, "mean")[0][: len(beside)] == [cell(method) for method in beside]
    for number, method in enumerate(methods(count)):
        lines = cells_of(text, method)
        assert len(lines) == {1: 0, 3: 1, 14: 2}[count]
        if lines:
            accuracy_, kept, in_bytes, everything, *costs = lines[0]
            assert accuracy_ == cell(method) and kept == f"{0.25 * (1 + number):.3f}x"
            assert in_bytes == f"{0.125 * (1 + number):.3f}x"
            assert everything == f"{1 + 0.5 * (1 + number):.2f}x"
            assert costs == ["1 k", "2 M", "3 G", "2.5"]
        if lines[1:]:
            assert lines[1] == [cell(method, task) for task in ("birds", "cars")]
    assert "2 tasks and the pre-trained model: 1.50x the" in " ".join(text.split())
    assert f"Forgetting: 0 of {2 * draws} stored tasks changed" in text


def test_many_tasks_are_parted_where_the_terminal_ends():
    tasks = [f"task{number}" for number in range(12)]
    text = shown(invented(5, draws=2, tasks=tasks))
    assert max(map(len, text.splitlines())) <= 100 and "…" not in text
    blocks = cells_of(text, "method4")[1:]  # after the means
    assert len(blocks) > 1 and sum(map(len, blocks)) == 12


def test_what_was_forgotten_and_what_is_not_known_is_said():
    results = invented(2)
    results["forgetting"][1]["logits_sha256_at_end"] = "b"
    results["rows"][1]["byte_ratio"] = None
    text = shown(results)
    assert "Forgetting: 1 of 2 stored tasks changed" in text
    assert cells_of(text, "method1")[0][2] == "-"


@pytest.mark.parametrize("count", [1, 3, 14])
def test_a_page_has_a_column_for_each_method_of_the_rows(count):
    text = runs.run_table(invented(count))
    header, cars = cells_of(text, "task")[0], cells_of(text, "cars")[0]
    assert header[:count] == [f"{method}, accuracy" for method in methods(count)]
    assert header[count:] == ["parameters kept by method0 (mlp)", "bytes"]
    assert cars[:count] == [f"{100 * accuracy('cars', number, 0):.1f}" for number in range(count)]
    assert cars[count:] == ["0.250x", "1,000"]
    assert "Seed 10, 8 epochs per task, on 1 x cpu, jax 0." in text
    assert "1.50x a backbone, where a whole network per task would be 3x" in text


def test_a_page_shows_deviations_over_draws():
    text = runs.run_table(invented(2, draws=2))
    values = [accuracy("birds", 1, draw) for draw in range(2)]
    wanted = f"{100 * statistics.mean(values):.1f} ({100 * statistics.stdev(values):.1f})"
    assert cells_of(text, "birds")[0][1] == wanted
    assert "the draws with seeds 10, 11, on" in text


def test_nothing_that_shows_results_names_a_method():
    words = re.compile(rf"\b({'|'.join(METHODS)}|fine-tun\w+)\b")
    files = [*(ROOT / "cwps_jax" / "report").glob("*.py"), ROOT / "benchmarks" / "runs.py"]
    found = {file.name: words.findall(file.read_text()) for file in files}
    assert not any(found.values()), found


def test_the_table_by_round_tells_means_and_what_older_versions_still_cost():
    """Two tasks, two rounds: one task has a better version in the second, of whose first others borrow."""
    results = invented(1)
    tasks = names(results["rows"], "task")[:2]

    def entry(task, number, version, accuracy, older, own):
        relation = {task: own, "pretrained": 0.5, "elsewhere": 0.5 - own}
        reached = {"accuracy_when_learned": accuracy, "validation_accuracy": accuracy - 0.1}
        size = {"params_ratio": 0.25, "byte_ratio": 0.05, "bytes": 1000, "older_bytes": older}
        who = {"round": number, "task": task, "draw": 0, "version": version}
        return {**who, **reached, **size, "relation": relation}

    assert shown(results).count("older") == 0
    before = stored_bytes(results)
    results["rounds"] = [
        *(entry(task, 1, 1, 0.8, 0, 0.4) for task in tasks),
        entry(tasks[0], 2, 1, 0.8, 0, 0.4),
        entry(tasks[1], 2, 2, 0.9, 1234, 0.2),
    ]
    text = shown(results, width=120)
    assert cells_of(text, "1") == [
        ["80.0%", "70.0%", "2 of 2", "0.250x", "1,000", "0", "40%", "50%", "10%"],
    ]
    assert cells_of(text, "2") == [
        ["85.0%", "75.0%", "1 of 2", "0.250x", "1,000", "617", "30%", "50%", "20%"],
    ]
    assert "Older versions, whose rows these borrow: 1,234 bytes more." in text
    after, own = stored_bytes(results), results["method"]
    assert after[own] == [*before[own][:-1], before[own][-1] + 1234]
    assert {**after, own: None} == {**before, own: None}
