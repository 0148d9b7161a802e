"""Config: every wrong value is one clear line."""

import dataclasses
import importlib.util
import pathlib

import pytest

from cwps_jax.config import DataConfig, RunConfig, TrainConfig, default_config, run_config
from cwps_jax.errors import CwpsError

DIGITS = pathlib.Path(__file__).parent.parent / "configs" / "digits.py"


def shipped(path: pathlib.Path) -> dict:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config().to_dict()


VALID = shipped(DIGITS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lamda_": 0.3}, "config.lamda_ is not known; did you mean config.lambda_?"),
        ({"zzzzzz": 1}, "config.zzzzzz is not known"),
        ({"epochs": "many"}, "config.epochs = 'many': must be a whole number"),
        ({"epochs": 1.5}, "config.epochs = 1.5: must be a whole number"),
        ({"epochs": True}, "config.epochs = True: must be a whole number"),
        ({"learning_rate": "fast"}, "config.learning_rate = 'fast': must be a number"),
        ({"learning_rate": float("nan")}, "config.learning_rate = nan: must be a number"),
        ({"compensate": 1}, "config.compensate = 1: must be true or false"),
        ({"tasks": "negative"}, "config.tasks = 'negative': must be a tuple of a string"),
        ({"optimizer": "lion"}, "config.optimizer = 'lion': must be one of 'sgd', 'adamw'"),
        ({"learning_rate": -0.1}, "config.learning_rate = -0.1: must be at least 0"),
        ({"epochs": 0}, "config.epochs = 0: must be at least 1"),
        ({"epochs": 2}, "config.epochs = 2: cwps needs at least 3, one a stage"),
        ({"lambda_": 1.1}, "config.lambda_ = 1.1: must be in [0, 1]"),
        ({"lambda_": -0.1}, "config.lambda_ = -0.1: must be in [0, 1]"),
        ({"budget": 0.0}, "config.budget = 0.0: must be above 0 and at most 1"),
        ({"budget": 1.5}, "config.budget = 1.5: must be above 0 and at most 1"),
        ({"warm_up_share": 0.6, "hard_share": 0.4}, "must be below 1"),
        ({"label_smoothing": 1.0}, "config.label_smoothing = 1.0: must be at least 0 and below 1"),
        ({"ema": 1}, "config.ema = 1: must be at least 0 and below 1"),
        ({"ema": -0.1}, "config.ema = -0.1: must be at least 0 and below 1"),
        ({"layer_decay": 0.0}, "config.layer_decay = 0.0: must be above 0 and at most 1"),
        ({"layer_decay": 1.1}, "config.layer_decay = 1.1: must be above 0 and at most 1"),
        ({"stage_rates": (1.0, 1.0)}, "config.stage_rates = (1.0, 1.0): must be three factors"),
        ({"stage_rates": (1.0, -1.0, 1.0)}, "must be three factors of at least 0, for the warm-up, soft and"),
        (
            {"stage_rates": (1.0, "fast", 1.0)},
            "config.stage_rates = (1.0, 'fast', 1.0): must be a tuple of a",
        ),
        ({"search_granularity": "layer", "search_candidates": "any"}, "needs candidates='aligned'"),
        ({"tasks": ()}, "config.tasks is empty: name at least one task"),
        ({"tasks": ("a", "b", "a")}, "config.tasks names 'a' twice"),
        ({"tasks": ("pretrained",)}, "'pretrained' is the pre-trained model's own name"),
        ({"tasks": ("a/b",)}, "'a/b' cannot be a task's name"),
        ({"tasks": ("..",)}, "'..' cannot be a task's name"),
        (
            {"compare": ("magic",)},
            "config.compare = ('magic',): must be a tuple of one of 'finetune', 'probe'",
        ),
        ({"source": "", "weights": ""}, "config.source and config.weights are both empty"),
        ({"crop": "round"}, "config.crop = 'round': must be one of 'center', 'random', 'random_resized', 's"),
        ({"crop_area": (0.5, 0.2)}, "config.crop_area = (0.5, 0.2): must be the smallest and the largest"),
        ({"color_jitter": (0.4, 0.4, 0.4)}, "must be four strengths of at least 0"),
        ({"color_jitter": (0.4, 0.4, 0.4, 0.6)}, "hue (at most 0.5)"),
        ({"randaugment_magnitude": 11}, "config.randaugment_magnitude = 11: must be in [0, 10]"),
        ({"pixel_deviation": (0.2, 0.0, 0.2)}, "three numbers each, the deviations above 0"),
        ({"image_size": 64, "resize": 32}, "config.resize = 32: must be at least config.image_size = 64"),
        ({"shots": -1}, "config.shots = -1: must be at least 0"),
        ({"draws": 0}, "config.draws = 0: must be at least 1"),
        ({"overrides": 3}, "config.overrides = 3: must be keys and values"),
        ({"overrides": {"loops": 3}}, "config.overrides.loops = 3: must be keys and values"),
        (
            {"overrides": {"loops": {"epoch": 3}}},
            "config.overrides.loops.epoch is not known; did you mean config.overrides.loops.epochs?",
        ),
        (
            {"overrides": {"loops": {"image_size": 3}}},
            "config.overrides.loops.image_size: all tasks share it; set config.image_size",
        ),
        ({"overrides": {"loops": {"tasks": ("a",)}}}, "config.overrides.loops.tasks: all tasks share it"),
        (
            {"overrides": {"loops": {"epochs": "many"}}},
            "config.overrides.loops: config.epochs = 'many': must be a whole number",
        ),
    ],
)
def test_a_wrong_value_is_one_clear_line(change, message):
    with pytest.raises(CwpsError) as error:
        run_config({**VALID, **change})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_defaults_are_complete_and_a_misspelt_key_is_refused():
    config = default_config()
    assert set(config.keys()) == {field.name for field in dataclasses.fields(RunConfig)}
    config.lamda_ = 0.3
    with pytest.raises(CwpsError, match="did you mean config.lambda_"):
        run_config(config.to_dict())


def test_a_runs_config_gives_the_tasks_part():
    config = run_config({**VALID, "budget": 0.3, "seed": 7})
    assert isinstance(config.train, TrainConfig)
    assert (config.train.budget, config.train.seed) == (0.3, 7)


def test_what_is_different_for_one_task_is_different_for_it_alone():
    given = {"loops": {"epochs": 4, "color_jitter": [0.1, 0.1, 0.1, 0.0]}}
    config = run_config({**VALID, "overrides": given})
    loops, other = config.for_task("loops"), config.for_task("negative")
    assert (loops.train.epochs, loops.images.color_jitter) == (4, (0.1, 0.1, 0.1, 0.0))
    assert other == dataclasses.replace(config, overrides={})


def test_every_field_is_explained():
    explained = "".join(part.__doc__ or "" for part in (TrainConfig, DataConfig, RunConfig))
    for field in dataclasses.fields(RunConfig):
        assert f"{field.name}" in explained, field.name
