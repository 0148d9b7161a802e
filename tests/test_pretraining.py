"""A workdir's pre-trained model: what it depends on is recorded, and another one is refused."""

import dataclasses

import pytest
from test_config import VALID

from cwps_jax import CwpsError, Pool, TrainConfig, pretraining
from cwps_jax.config import DataConfig, RunConfig, run_config
from cwps_jax.pretraining import IRRELEVANT, origin, stored_pool

CONFIG = run_config({**VALID, "backbone": "resnet8", "tasks": ("negative", "loops"), "weights": ""})


@pytest.fixture
def workdir(tmp_path, tiny_variables, tiny_layout):
    """A workdir whose pool was made by `CONFIG`."""
    record = {**origin(CONFIG), "accuracy": 0.9}
    Pool.create(tmp_path / "pool", tiny_variables, tiny_layout, backbone="resnet8", record=record)
    return tmp_path


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": 16},
        {"pixel_mean": (0.5, 0.5, 0.5)},
        {"pixel_deviation": (0.5, 0.5, 0.5)},
        {"data_dir": "elsewhere"},
        {"crop": "random"},
        {"flip": True},
        {"mixup": 0.2},
        {"train_split": "train+validation"},
        {"source": "mirrored"},
        {"source_epochs": 11},
        {"learning_rate": 0.01},
        {"batch_size": 32},
        {"label_smoothing": 0.1},
        {"stochastic_depth": 0.1},
        {"dtype": "bfloat16"},
        {"seed": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_workdir_made_with_another_source_is_refused(workdir, changes):
    ((key, value),) = changes.items()
    told = lambda one: repr(list(one) if isinstance(one, tuple) else one)
    with pytest.raises(CwpsError) as error:
        stored_pool(dataclasses.replace(CONFIG, **changes), workdir)
    assert str(error.value) == (
        f"{workdir}: made with another pre-trained model ({key} was {told(getattr(CONFIG, key))}, is "
        f"{told(value)}); use another --workdir, or the earlier config"
    )


def test_what_is_different_for_the_source_alone_counts(workdir):
    with pytest.raises(CwpsError, match=r"made with another pre-trained model \(flip was False, is True\)"):
        stored_pool(dataclasses.replace(CONFIG, overrides={"digits": {"flip": True}}), workdir)
    same = dataclasses.replace(CONFIG, overrides={"negative": {"flip": True}, "digits": {"epochs": 4}})
    assert stored_pool(same, workdir) is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"tasks": ("thick",)},
        {"epochs": 5},
        {"budget": 0.2},
        {"byte_budget": 0.05, "budget": 1.0},
        {"row_bits": 2},
        {"metrics": ("jsonl",)},
        {"rounded_share": 0.5},
        {"head_share": 0.5},
        {"norm_batches": 2},
        {"compare": ()},
        {"keep_compared": True},
        {"shots": 5},
        {"draws": 2},
        {"least_steps": 7},
        {"method": "finetune"},
        {"cache": "none"},
        {"cache_dir": "elsewhere"},
        {"reader_threads": 2},
        {"prefetch": 3},
        {"parallel": "pmap"},
        {"remat": True},
        {"compilation_cache": ""},
        {"profile": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_the_source_does_not_depend_on_may_change(workdir, changes):
    config = dataclasses.replace(CONFIG, **changes)
    assert stored_pool(config, workdir) is not None
    assert origin(config) == origin(CONFIG)


def test_the_pretrained_model_is_whole_and_in_float32_whatever_the_tasks_become():
    assert {*pretraining.WHOLE} <= set(IRRELEVANT)
    config = dataclasses.replace(CONFIG, row_bits=2, head_share=0.2, byte_budget=0.1, budget=1.0)
    assert dataclasses.replace(config.train, **pretraining.WHOLE) == dataclasses.replace(
        CONFIG.train, budget=1.0
    )


def test_settings_of_the_tasks_methods_may_change(workdir):
    given = {"budget": 1.0, "cwps": {"lambda_": 0.3, "search_distance": "l2"}}
    assert stored_pool(run_config({**VALID, **given}), workdir) is not None


def test_every_key_is_recorded_or_known_to_be_irrelevant():
    keys = {field.name for part in (TrainConfig, DataConfig, RunConfig) for field in dataclasses.fields(part)}
    assert set(IRRELEVANT) < keys
    assert origin(CONFIG)["trained_by"].keys() == keys - set(IRRELEVANT)


def test_a_pool_that_recorded_less_is_compared_by_what_it_has(tmp_path, tiny_variables, tiny_layout):
    own = origin(CONFIG)["trained_by"]
    record = {key: own[key] for key in ("source", "source_epochs", "seed", "learning_rate")}
    Pool.create(tmp_path / "pool", tiny_variables, tiny_layout, backbone="resnet8", record=record)
    assert stored_pool(CONFIG, tmp_path) is not None
    assert stored_pool(dataclasses.replace(CONFIG, image_size=16), tmp_path) is not None
    with pytest.raises(CwpsError, match=r"\(source_epochs was 10, is 11\)"):
        stored_pool(dataclasses.replace(CONFIG, source_epochs=11), tmp_path)


def test_a_model_from_a_file_is_known_by_the_file(workdir, tmp_path, tiny_variables, tiny_layout):
    (tmp_path / "w.safetensors").write_bytes(b"weights")
    config = dataclasses.replace(CONFIG, weights=str(tmp_path / "w.safetensors"))
    with pytest.raises(CwpsError, match=r"another pre-trained model \(weights_sha256 was None, is '"):
        stored_pool(config, workdir)
    assert stored_pool(config, tmp_path / "new") is None
    Pool.create(
        tmp_path / "new" / "pool", tiny_variables, tiny_layout, backbone="resnet8", record=origin(config)
    )
    assert stored_pool(config, tmp_path / "new") is not None
    (tmp_path / "w.safetensors").write_bytes(b"others")
    for other in (config, CONFIG):  # another file, and none: trained in the run
        with pytest.raises(CwpsError, match="made with another pre-trained model"):
            stored_pool(other, tmp_path / "new")
