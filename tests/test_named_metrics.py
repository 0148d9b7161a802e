"""F1, mean IoU and mean average precision by name: their values, and where the name goes."""

import dataclasses
import io
import json
import pathlib
import re
import typing

import numpy as np
import pytest
from conftest import TinyModel
from invented import invented
from rich.console import Console

import cwps_jax as cwps
from cwps_jax.config import RunConfig
from cwps_jax.pool import stored
from cwps_jax.report.metric_writer import JsonLines, numbers
from cwps_jax.report.table import show_results
from cwps_jax.train.evaluation import measure
from cwps_jax.train.named_metrics import NAMED, find_metric, metric_name
from cwps_jax.train.records import Progress
from cwps_jax.train.watched import described

# Answers 0 0 1 1 2 to the labels 0 1 1 1 2; the scores of class 1 put its items first, second and fourth.
LABELS = np.array([0, 1, 1, 1, 2])
OUTPUTS = np.array([[9, 0, 0], [5, 1, 0], [0, 7, 1], [1, 6, 2], [2, 3, 8]], np.float32)
CLASSES = (
    np.mean([2 / 3, 4 / 5, 1.0]),
    np.mean([1 / 2, 2 / 3, 1.0]),
    np.mean([1.0, (1 + 1 + 3 / 4) / 3, 1.0]),
)
# Of the second answer no item is a yes: F1 and IoU of it are 0, and average precision does not count it.
ANSWERS = np.array([[1, 0], [1, 0], [0, 0]], np.float32)
YES = np.array([[2, -1], [-1, -2], [-2, 3]], np.float32)
YES_OR_NO = (np.mean([2 / 3, 0]), np.mean([1 / 2, 0]), 1.0)
PIXELS = np.array([[[0, 1]], [[1, 1]]])
SHOWN = np.eye(2, dtype=np.float32)[np.array([[[0, 1]], [[0, 1]]])]
PAGE = pathlib.Path(__file__).parent.parent / "docs" / "metrics.md"
NAMES = ("macro_f1", "mean_iou", "mean_average_precision")


@pytest.mark.parametrize(
    ("outputs", "labels", "wanted"),
    [
        *((OUTPUTS, LABELS, {name: value}) for name, value in zip(NAMES, CLASSES, strict=True)),
        *((YES, ANSWERS, {name: value}) for name, value in zip(NAMES, YES_OR_NO, strict=True)),
        (SHOWN, PIXELS, {"macro_f1": np.mean([2 / 3, 4 / 5]), "mean_iou": np.mean([1 / 2, 2 / 3])}),
    ],
)
def test_its_value_is_that_counted_by_hand(outputs, labels, wanted):
    split = {"image": np.zeros((len(labels), 1)), "label": labels}
    for name, value in wanted.items():
        assert measure(find_metric(name), outputs, split) == pytest.approx(value)


def test_the_config_knows_every_name():
    (hint,) = (field.type for field in dataclasses.fields(RunConfig) if field.name == "metric")
    assert typing.get_args(hint) == tuple(NAMED)
    with pytest.raises(cwps.CwpsError, match=r"config\.metric = 'f1': must be one of 'accuracy', 'macro_f1'"):
        RunConfig(tasks=("birds",), source="digits", metric="f1")


def test_a_name_that_is_not_known_and_a_package_that_is_not_there_are_one_line(monkeypatch):
    with pytest.raises(cwps.CwpsError, match="metric 'f1' is not one of accuracy, macro_f1"):
        find_metric("f1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(cwps.CwpsError, match=r"'macro_f1' needs sklearn, .*cwps_jax\[demo\]"):
        find_metric("macro_f1")
    assert find_metric("accuracy") is cwps.accuracy


def test_a_function_has_its_own_name():
    def recall(outputs, fields):
        return 1.0

    assert metric_name(cwps.whole_split(recall)) == metric_name(recall) == "recall"
    assert [metric_name(metric) for metric in NAMED.values()] == list(NAMED)


def test_the_record_of_a_task_keeps_the_name_and_the_choice_is_made_by_it(
    tmp_path, tiny_variables, tiny_layout, capsys
):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(48, 8, 8, 1)).astype(np.float32)
    data = cwps.TaskData(*[{"image": image, "label": np.arange(48) % 3}] * 3, classes=3)
    names = {"cwps": cwps, "model": TinyModel(), "data": data}
    names["pool"] = pool = cwps.Pool.create(tmp_path / "pool", tiny_variables, tiny_layout)
    names["config"] = cwps.TrainConfig(epochs=3, batch_size=16, budget=0.6)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(compile(block, PAGE.name, "exec"), names)
    learned, config = names["learned"], names["config"]
    found = cwps.evaluate(pool, "birds", data, metric="macro_f1", model=TinyModel())
    assert learned.record["metric"] == "macro_f1" and learned.metric == found.metric
    assert 0 < names["found"].metric <= 1 and capsys.readouterr().out.startswith("macro_f1 ")
    assert learned.metric != cwps.evaluate(pool, "birds", data, model=TinyModel()).metric
    assert "test macro_f1" in learned._repr_html_()
    assert f"{learned.metric:.3f} macro_f1" in repr(pool) and f"macro_f1 {learned.metric:.3f}" in listed(pool)
    again = cwps.learn_task(
        pool, "birds", TinyModel(), data, relearn="better", metric="macro_f1", config=config
    )
    assert again.name == "birds@1" and again.reached == learned.validation_metric  # not better: not stored


def listed(pool: cwps.Pool) -> str:
    """Returns what the command line shows of a pool's only task."""
    (row,) = stored.listed(pool)
    return stored._cells(row)[0]


def test_tables_name_it():
    results = invented(2)
    assert "accuracy" in shown(results) and "macro_f1" not in shown(results)
    for row in results["rows"]:
        row["metric"] = "macro_f1"
    assert "tasks, macro_f1" in shown(results) and "accuracy" not in shown(results)


def shown(results: dict) -> str:
    console = Console(file=io.StringIO(), width=120)
    show_results(results, console)
    return console.file.getvalue()


def test_a_batch_has_no_value_of_it_and_nothing_writes_one(tmp_path):
    progress = Progress("cwps", "soft", 1, 3, False, 0.5, float("nan"), 0.2, 0.1, 1.0)
    assert sorted(numbers("birds", progress)) == [
        f"birds/cwps/{key}" for key in ("lambda", "loss", "private")
    ]
    assert "nan" not in described("birds", progress) and "accuracy" not in described("birds", progress)
    writer = JsonLines(tmp_path)
    writer.write("birds", progress)
    writer.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)["metric"] is None
