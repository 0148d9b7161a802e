"""benchmarks/serve.py and serve_curves.py keep the contract of result files; all ways answer alike."""

import importlib
import json
import pathlib
import sys

import pytest
from PIL import Image

FOLDER = pathlib.Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(FOLDER))  # its files import each other by their own names
serve, curves = (importlib.import_module(name) for name in ("serve", "serve_curves"))
page = importlib.import_module("serving_page")
TINY = ("--quick", "--batch", "2", "--size", "16", "--repeats", "3")
CONTRACT = {"ratios", "quartiles", "device", "versions", "commit", "settings"}
TASKS = tuple(f"task{number}" for number in range(64))


def measured(benchmark, out: pathlib.Path, *flags: str) -> dict:
    benchmark.main([*TINY, *flags, "--out", str(out)])
    result = json.loads(out.read_text())
    assert result.keys() >= CONTRACT and result["settings"]["quick"]
    for name, (low, high) in result["quartiles"].items():
        assert 0 < low <= result["ratios"][name] <= high
    return result


def test_requests_are_drawn_as_their_mix_says():
    drawn = {mix: serve.drawn(mix, TASKS, 64) for mix in serve.MIXES}
    assert set(drawn["identical"]) == {"task0"} and sorted(drawn["distinct"]) == sorted(TASKS)
    assert len(set(drawn["skewed"])) < len(set(drawn["uniform"])) < 64
    assert all(len(some) == 64 and set(some) <= set(TASKS) for some in drawn.values())
    assert drawn == {mix: serve.drawn(mix, TASKS, 64) for mix in serve.MIXES}
    assert serve.drawn("distinct", TASKS[:2], 3) == ["task0", "task1", "task0"]


def test_the_bank_is_smaller_the_fewer_bits_rows_have_and_switches_compile_nothing(tmp_path):
    result = measured(serve, tmp_path / "serve.json", "--tasks", "4", "--switches", "4")
    ratios = result["ratios"]
    assert ratios["resident_4_bits"] < ratios["resident_float32"] < 1
    assert result["compilations_of_switches"] == 0
    for mix in serve.MIXES:
        assert {f"loop_over_mixed_{mix}", f"mixed_throughput_{mix}"} <= result["quartiles"].keys()
        assert result["way"][mix] in ("merged", "swapped", "mixed")


@pytest.fixture(scope="module")
def drawn_curves(tmp_path_factory):
    return measured(curves, tmp_path_factory.mktemp("curves") / "curves.json", "--tasks", "1", "3")


def test_curves_have_every_way_mix_and_number_of_tasks(drawn_curves):
    rows = drawn_curves["curves"]
    assert [(row["tasks"], row["mix"], row["way"]) for row in rows] == [
        (tasks, mix, way) for tasks in (1, 3) for mix in serve.MIXES for way in curves.WAYS
    ]
    for row in rows:
        low, high = row["quartiles"]
        assert 0 < low <= row["throughput"] <= high and row["memory"] > 0


def test_memory_of_full_copies_grows_by_one_a_task_and_a_banks_by_less(drawn_curves):
    memory = {(row["way"], row["tasks"]): row["memory"] for row in drawn_curves["curves"]}
    grown = {way: (memory[way, 3] - memory[way, 1]) / 2 for way in curves.WAYS}
    assert grown["full copies"] == 1 and grown["from disk"] == 0
    assert 0 < grown["one after another"] < 0.3  # a tenth of the channels, rounded up in each layer


def test_curves_are_a_table_and_two_pictures(drawn_curves, tmp_path):
    table = page.curves_table(drawn_curves)
    assert sum(line.startswith(("| 1 |", "| 3 |")) for line in table.splitlines()) == 2 * len(curves.WAYS)
    for picture in page.draw_serving(drawn_curves, tmp_path):
        with Image.open(picture) as shown:
            assert shown.text["Description"].endswith(drawn_curves["commit"])


def test_the_pictures_in_the_docs_are_of_the_committed_result():
    committed = json.loads((FOLDER / "results" / "serve_curves_cpu.json").read_text())
    for name in ("serving_memory.png", "serving_throughput.png"):
        with Image.open(FOLDER.parent / "docs" / "images" / name) as shown:
            assert shown.text["Description"].endswith(committed["commit"])


def test_ways_that_differ_are_found(tmp_path):
    made = serve.Setting.of(
        serve.parse(curves.model_parser("", backbone="resnet8", size=16, batch=2), {}, [])
    )
    pool = curves.stored_pool(tmp_path / "pool", made.variables, made.layout, 2, 0.1)
    swapped = {"task0": pool.effective("task1"), "task1": pool.effective("task0")}
    with pytest.raises(AssertionError, match="bank"):
        curves.Served(made, pool, pool.tasks, swapped, {}).check()
