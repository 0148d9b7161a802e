"""Config: every wrong value is one clear line."""

import dataclasses
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import pytest

from cwps_jax import methods
from cwps_jax.config import DataConfig, RunConfig, TrainConfig, default_config, run_config
from cwps_jax.errors import CwpsError
from cwps_jax.methods.network import Network

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
        ({"epoch": 3}, "config.epoch is not known; did you mean config.epochs?"),
        ({"lambda_": 0.3}, "config.lambda_ is not known; did you mean config.cwps.lambda_?"),
        ({"lamda_": 0.3}, "config.lamda_ is not known; did you mean config.cwps.lambda_?"),
        ({"search_distance": "l2"}, "config.search_distance is not known; did you mean config.cwps.search_d"),
        ({"hard_form": "dense"}, "config.hard_form is not known"),
        ({"cwps": {"lamda_": 0.3}}, "config.cwps.lamda_ is not known; did you mean config.cwps.lambda_?"),
        ({"cwps": {"zzzzzz": 1}}, "config.cwps.zzzzzz is not known"),
        ({"cwps": 0.3}, "config.cwps = 0.3: must be keys and values"),
        ({"probe": {"lambda_": 0.3}}, "config.probe.lambda_ is not known"),
        ({"settings": {}}, "config.settings is not known"),
        ({"zzzzzz": 1}, "config.zzzzzz is not known"),
        ({"epochs": "many"}, "config.epochs = 'many': must be a whole number"),
        ({"epochs": 1.5}, "config.epochs = 1.5: must be a whole number"),
        ({"epochs": True}, "config.epochs = True: must be a whole number"),
        ({"learning_rate": "fast"}, "config.learning_rate = 'fast': must be a number"),
        ({"learning_rate": float("nan")}, "config.learning_rate = nan: must be a number"),
        ({"flip": 1}, "config.flip = 1: must be true or false"),
        ({"cwps": {"compensate": 1}}, "config.cwps.compensate = 1: must be true or false"),
        ({"cwps": {"lambda_": "much"}}, "config.cwps.lambda_ = 'much': must be a number"),
        (
            {"cwps": {"granularity": "pixel"}},
            "config.cwps.granularity = 'pixel': must be one of 'channel', ",
        ),
        ({"tasks": "negative"}, "config.tasks = 'negative': must be a tuple of a string"),
        ({"optimizer": "lion"}, "config.optimizer = 'lion': must be one of 'sgd', 'adamw'"),
        ({"learning_rate": -0.1}, "config.learning_rate = -0.1: must be at least 0"),
        ({"epochs": 0}, "config.epochs = 0: must be at least 1"),
        ({"cwps": {"lambda_": 1.1}}, "config.cwps.lambda_ = 1.1: must be in [0, 1]"),
        ({"cwps": {"lambda_": -0.1}}, "config.cwps.lambda_ = -0.1: must be in [0, 1]"),
        ({"cwps": {"max_temperature": 0.5}}, "config.cwps.max_temperature = 0.5: must be at least 1"),
        ({"cwps": {"score_learning_rate": -1}}, "config.cwps.score_learning_rate = -1: must be at least 0"),
        ({"cwps": {"hard_share": 1.5}}, "config.cwps.hard_share = 1.5: must be in [0, 1]"),
        ({"budget": 0.0}, "config.budget = 0.0: must be above 0 and at most 1"),
        ({"budget": 1.5}, "config.budget = 1.5: must be above 0 and at most 1"),
        (
            {"cwps": {"warm_up_share": 0.6, "hard_share": 0.4}},
            "config.cwps.warm_up_share + hard_share = 1.0: must be below 1",
        ),
        ({"label_smoothing": 1.0}, "config.label_smoothing = 1.0: must be at least 0 and below 1"),
        ({"ema": 1}, "config.ema = 1: must be at least 0 and below 1"),
        ({"ema": -0.1}, "config.ema = -0.1: must be at least 0 and below 1"),
        ({"layer_decay": 0.0}, "config.layer_decay = 0.0: must be above 0 and at most 1"),
        ({"layer_decay": 1.1}, "config.layer_decay = 1.1: must be above 0 and at most 1"),
        (
            {"cwps": {"stage_rates": (1.0, 1.0)}},
            "config.cwps.stage_rates = (1.0, 1.0): must be three factors",
        ),
        (
            {"cwps": {"stage_rates": [1.0, -1.0, 1.0]}},
            "three factors of at least 0, for the warm-up, soft",
        ),
        (
            {"cwps": {"stage_rates": (1.0, "fast", 1.0)}},
            "config.cwps.stage_rates = (1.0, 'fast', 1.0): must be a tuple of a",
        ),
        ({"cwps": {"search_granularity": "layer", "search_candidates": "any"}}, "needs candidates='aligned'"),
        ({"method": "magic"}, "method 'magic' is not known; choose one of cwps, "),
        ({"method": 3}, "method 3 is not known"),
        ({"tasks": ()}, "config.tasks is empty: name at least one task"),
        ({"tasks": ("a", "b", "a")}, "config.tasks names 'a' twice: a task is learned once"),
        (
            {"tasks": ("caf\u00e9", "b", "cafe\u0301")},
            "config.tasks names 'caf\u00e9' twice, in both Unicode spellings of its accents: a task is",
        ),
        ({"tasks": ("pretrained",)}, "'pretrained' is the pre-trained model's own name"),
        ({"tasks": ("a/b",)}, "'a/b' cannot be a task's name"),
        ({"tasks": ("..",)}, "'..' cannot be a task's name"),
        (
            {"method": "finetune", "compare": ("probe",), "cwps": {"lambda_": 0.3}},
            "config.cwps: settings of a method that this run does not use; it uses finetune, probe",
        ),
        (
            {"compare": ("magic",)},
            "method 'magic' is not known; choose one of cwps, ",
        ),
        ({"compare": (1,)}, "config.compare = (1,): must be a tuple of a string"),
        (
            {"compare": ("probe", "finetune", "probe")},
            "config.compare = ('probe', 'finetune', 'probe'): names 'probe' twice; name each method once",
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
        (
            {"overrides": {"loops": {"cwps": {"lambda_": 2}}}},
            "config.overrides.loops: config.cwps.lambda_ = 2: must be in [0, 1]",
        ),
        (
            {"overrides": {"loops": {"cwps": {"lamda_": 0.3}}}},
            "config.overrides.loops: config.cwps.lamda_ is not known; did you mean config.cwps.lambda_?",
        ),
        (
            {"overrides": {"loops": {"method": "probe"}}},
            "config.overrides.loops.method: all tasks share it; set config.method",
        ),
    ],
)
def test_a_wrong_value_is_one_clear_line(change, message):
    with pytest.raises(CwpsError) as error:
        run_config({**VALID, **change})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_defaults_are_complete_and_a_misspelt_key_is_refused():
    config = default_config()
    general = {field.name for field in dataclasses.fields(RunConfig)} - {"settings"}
    assert set(config.keys()) == general | methods.METHODS.keys()
    for name, method in methods.METHODS.items():
        assert set(config[name].keys()) == {field.name for field in dataclasses.fields(method)}
    config.cwps.lamda_ = 0.3
    with pytest.raises(CwpsError, match="did you mean config.cwps.lambda_"):
        run_config(config.to_dict())


def test_settings_reach_the_method_that_they_are_of():
    given = {"cwps": {"lambda_": 0.3, "stage_rates": [1.0, 0.5, 0.1]}}
    different = {"overrides": {"loops": {"cwps": {"lambda_": 0.4}}}}
    config = run_config({**VALID, **given, **different})
    assert config.train.method == methods.Cwps(lambda_=0.3, stage_rates=(1.0, 0.5, 0.1))
    assert config.train_by("probe").method == methods.Probe()
    # What is different for a task is put on what is given for all.
    assert config.for_task("loops").train.method == methods.Cwps(lambda_=0.4, stage_rates=(1.0, 0.5, 0.1))
    assert config.for_task("negative").train == config.train


def test_a_train_config_takes_a_method_by_name_or_with_settings():
    assert methods.resolve(TrainConfig().method) == methods.Cwps()
    assert methods.resolve(TrainConfig(method=methods.Cwps(lambda_=0.3)).method).lambda_ == 0.3
    with pytest.raises(CwpsError, match=r"^config.method = 3: must be a method's name, or a Method with its"):
        methods.resolve(TrainConfig(method=3).method)


def test_too_few_epochs_are_refused_by_the_method_that_needs_more(tiny_model, tiny_layout):
    network = Network(tiny_model, tiny_layout, jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32))
    methods.Finetune().check(network, TrainConfig(epochs=1))
    methods.Cwps().check(network, TrainConfig(epochs=3))
    with pytest.raises(CwpsError, match="^config.epochs = 2: cwps needs at least 3, one per stage$"):
        methods.Cwps().check(network, TrainConfig(epochs=2))


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
    for method in methods.METHODS.values():
        for field in dataclasses.fields(method):
            assert any(field.name in (one.__doc__ or "") for one in method.__mro__), (method, field.name)
