"""Compile once: what a run of several tasks compiles, counted program by program."""

import dataclasses
import importlib
import pathlib
import sys

import jax
import pytest
from rich.console import Console

from cwps_jax import run
from cwps_jax.config import RunConfig, default_config, run_config

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "benchmarks"))
synthetic = importlib.import_module("synthetic")
cwps_method = importlib.import_module("cwps_jax.methods.cwps")

# In this order: 10 classes; 3 classes of fewer images; 10 classes again, another number of steps.
TASKS = ("negative", "loops", "thick")


def small_run() -> RunConfig:
    config = default_config()
    config.update({"backbone": "resnet8", "source": "digits", "source_epochs": 1, "epochs": 3})
    config.update({"tasks": TASKS, "shots": 32, "overrides": {"thick": {"shots": 16}}})
    # Every channel open: the compact hard stage then has room for all of them, whatever was learned.
    config.cwps.update({"estimator": "straight_through", "score_learning_rate": 0.0})
    return run_config(config.to_dict())


@pytest.fixture
def compiled(monkeypatch, tmp_path) -> dict[str, list[str]]:
    """Names of the programs that a run compiled: in all of it, and in each task without and in its search."""
    found: dict[str, list[str]] = {}
    learn_task, composite = run._learn_task, cwps_method.composite

    def counted_task(prepared, name, *args):
        def counted_search(*args):
            with synthetic.CountCompilations() as counted:
                parent = composite(*args)
            found[f"{name} search"] = counted.names
            return parent

        monkeypatch.setattr(cwps_method, "composite", counted_search)
        with synthetic.CountCompilations() as counted:
            learn_task(prepared, name, *args)
        found[name] = counted.names
        for program in found[f"{name} search"]:
            found[name].remove(program)

    monkeypatch.setattr(run, "_learn_task", counted_task)
    jax.clear_caches()  # of what other tests compiled
    with synthetic.CountCompilations() as counted:
        run.learn(small_run(), tmp_path, Console(quiet=True))
    return {**found, "run": counted.names}


def test_a_run_compiles_one_step_a_stage_and_later_tasks_next_to_nothing(compiled):
    # Fine-tuning, which is the warm-up's and the source task's step too; probe, soft and hard.
    assert compiled["run"].count("jit(step)") == 4
    assert compiled["run"].count("jit(forward)") == 2  # for evaluation: of 10 classes, and of 3
    assert compiled["run"].count("jit(statistics)") == 1
    # Another number of classes: the forward pass of its model, and the metric of its logits.
    assert sorted(compiled["loops"]) == ["jit(accuracy)", "jit(forward)"]
    # Another number of images alone: nothing.
    assert compiled["thick"] == []
    assert all(compiled[f"{task} search"] == [] for task in TASKS)


def test_compiled_programs_are_kept_on_disk_unless_that_is_turned_off(monkeypatch):
    start_jax = importlib.import_module("cwps_jax.compilation_cache").start_jax
    asked = {}
    monkeypatch.setattr(jax.config, "update", asked.__setitem__)
    start_jax(dataclasses.replace(small_run(), compilation_cache=""))
    assert asked == {}
    start_jax(small_run())
    assert asked["jax_compilation_cache_dir"] == str(pathlib.Path.home() / ".cache" / "cwps_jax")
    assert asked["jax_persistent_cache_min_compile_time_secs"] == 0
