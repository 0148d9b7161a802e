"""What a task was learned with: stored, compared before training, and told apart from forgetting."""

import dataclasses
import json
import shutil

import numpy as np
import optax
import pytest
from PIL import Image
from rich.console import Console

from cwps_jax import run
from cwps_jax.config import default_config, run_config
from cwps_jax.errors import CwpsError
from cwps_jax.finish import finish
from cwps_jax.provenance import KEY, versions
from cwps_jax.report import results as results_module
from cwps_jax.serve import evaluate
from cwps_jax.store.pool import Pool

CONSOLE = Console(width=200)
SMALL = {
    **{"backbone": "resnet8", "data": "folders", "image_size": 12, "source": "source", "source_epochs": 1},
    **{"epochs": 3, "batch_size": 8, "compare": (), "tasks": ("birds",), "compilation_cache": ""},
}


def picture(path, value, rng):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = rng.integers(0, 40, (14, 14, 3))
    Image.fromarray((noise + value).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for task in ("source", "birds", "cars"):
        for split, count in (("train", 16), ("test", 8)):
            for value, name in ((0, "dark"), (200, "light")):
                for number in range(count):
                    picture(folder / task / split / name / f"{number}.png", value, rng)
    return folder


@pytest.fixture
def config(data_dir):
    def make(**changes):
        made = default_config()
        made.update({**SMALL, "data_dir": str(data_dir), "cache_dir": str(data_dir / "cache"), **changes})
        return run_config(made.to_dict())

    return make


@pytest.fixture(scope="module")
def learned(data_dir, tmp_path_factory):
    made = default_config()
    made.update({**SMALL, "data_dir": str(data_dir), "cache_dir": str(data_dir / "cache")})
    workdir = tmp_path_factory.mktemp("learned")
    run.learn(run_config(made.to_dict()), workdir, CONSOLE)
    return workdir


@pytest.fixture
def workdir(learned, tmp_path):
    return shutil.copytree(learned, tmp_path / "workdir")


def test_a_stored_task_knows_what_it_was_learned_with(learned):
    told = Pool.open(learned / "pool").version("birds").record[KEY]
    assert told["task"] == "birds" and told["class_names"] == ["dark", "light"]
    assert told["input"] == {"shape": [12, 12, 3], "dtype": "float32"}
    assert told["preparation"]["image_size"] == 12 and len(told["preparation"]["pixel_mean"]) == 3
    assert told["images"]["data"] == "folders" and told["images"]["image_size"] == 12
    assert told["config"]["epochs"] == 3 and told["config"]["method"]["name"] == "cwps"
    assert told["config"]["method"]["lambda_"] > 0
    assert len(set(told["fingerprints"].values())) == 3
    assert told["versions"] == versions() and told["dtype"] == "float32"
    # Beside the run's own config, for a reader without the pool.
    assert json.loads((learned / "config.json").read_text())["tasks"] == {"birds": told}


def forget_the_source(workdir):
    """What the pre-trained model depends on is another test's: see test_pretraining."""
    path = workdir / "pool" / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pretrained_record": {"source": "source"}}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 10}, r"image_size \(was 12, is 10\)"),
        ({"overrides": {"birds": {"pixel_mean": (0.0, 0.0, 0.0)}}}, r"pixel_mean \(was \[0\.485.*is \[0\.0"),
        ({"overrides": {"birds": {"crop": "stretch"}}}, r"crop \(was 'center', is 'stretch'\)"),
        ({"overrides": {"birds": {"interpolation": "bicubic"}}}, r"interpolation \(was 'bilinear'"),
        ({"overrides": {"birds": {"test_split": "train"}}}, "the test data have other contents"),
        ({"dtype": "bfloat16"}, r"dtype \(was 'float32', is 'bfloat16'\)"),
    ],
)
def test_another_preparation_or_other_test_data_are_refused_before_training(
    config, workdir, changes, message
):
    """Not reported as forgetting afterwards."""
    forget_the_source(workdir)
    before = (workdir / "config.json").read_bytes()
    other = config(tasks=("birds", "cars"), weights="", **changes)
    with pytest.raises(CwpsError, match=message) as refused:
        run.learn(other, workdir, CONSOLE)
    assert "'birds' is stored" in str(refused.value) and "\n" not in str(refused.value)
    assert (workdir / "config.json").read_bytes() == before
    assert Pool.open(workdir / "pool").tasks == ("birds",)


def test_an_optimizer_from_python_is_written_as_given_and_a_rerun_says_it_cannot_compare(
    config, tmp_path, capsys
):
    given = dataclasses.replace(config(), optimizer=optax.sgd(0.01))
    run.learn(given, tmp_path, CONSOLE)
    told = json.loads((tmp_path / "config.json").read_text())
    assert told["config"]["optimizer"] == "given from Python"
    assert told["tasks"]["birds"]["config"]["optimizer"] == "given from Python"
    capsys.readouterr()
    run.learn(dataclasses.replace(given, optimizer=optax.adam(0.01)), tmp_path, CONSOLE)
    said = " ".join(capsys.readouterr().out.split())
    assert "skipped; it was learned with other settings: perhaps config.optimizer (given from Python" in said


def test_a_class_that_was_replaced_is_refused(config, workdir, data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path / "data")
    (tmp_path / "data/birds/test/light").rename(tmp_path / "data/birds/test/bright")
    (tmp_path / "data/birds/train/light").rename(tmp_path / "data/birds/train/bright")
    other = config(data_dir=str(tmp_path / "data"), overrides={"birds": {"data_dir": str(tmp_path / "data")}})
    forget_the_source(workdir)
    with pytest.raises(CwpsError, match=r"class_names \(was \['dark', 'light'\], is \['bright', 'dark'\]\)"):
        run.learn(other, workdir, CONSOLE)


def test_other_settings_of_a_stored_task_are_named(config, workdir, capsys):
    overrides = {"birds": {"budget": 0.5, "epochs": 4, "cwps": {"lambda_": 0.3}}}
    run.learn(config(overrides=overrides), workdir, CONSOLE)
    said = " ".join(capsys.readouterr().out.split())
    assert "birds is in the pool already: skipped; it was learned with other settings: " in said
    assert "config.epochs (was 3, is 4)" in said and "config.budget (was 1.0, is 0.5)" in said
    told = json.loads((workdir / "config.json").read_text())
    assert told["tasks"]["birds"]["config"]["epochs"] == 3, "what the task never had stands beside it"
    run.learn(config(), workdir, CONSOLE)
    assert "skipped;" not in capsys.readouterr().out


def test_a_task_without_its_data_keeps_its_numbers_and_is_marked(config, workdir, data_dir, tmp_path, capsys):
    with_cars = config(tasks=("cars",))
    run.learn(with_cars, workdir, CONSOLE)
    whole = finish(with_cars, workdir, CONSOLE)
    assert whole["not_measured"] == [] and len(whole["forgetting"]) == 2
    assert whole["class_names"] == {"birds": ["dark", "light"], "cars": ["dark", "light"]}
    birds = data_dir / "birds"
    birds.rename(tmp_path / "away")
    try:
        results = finish(with_cars, workdir, CONSOLE)
        assert "birds was not measured" in capsys.readouterr().out
        told = "task 'birds' is learned already: leave it out of config.tasks, and it keeps its numbers"
        with pytest.raises(CwpsError, match=told):  # a task of this run has to have its data
            run.learn(config(tasks=("birds", "cars")), workdir, CONSOLE)
        with pytest.raises(CwpsError):
            finish(config(tasks=("birds",)), workdir, CONSOLE)
    finally:
        (tmp_path / "away").rename(birds)
    (missing,) = results["not_measured"]
    assert missing["task"] == "birds" and "birds" in missing["why"]
    assert [one["task"] for one in results["forgetting"]] == ["cars"]
    assert [row["accuracy"] for row in results["rows"]] == [row["accuracy"] for row in whole["rows"]]


def test_forgetting_counts_the_same_program_alone(config, workdir, monkeypatch, capsys):
    same = finish(config(), workdir, CONSOLE)
    assert [one["same_program"] for one in same["forgetting"]] == [True]
    newer = {**versions(), "jax": "99"}
    monkeypatch.setattr("cwps_jax.provenance.versions", lambda: newer)
    monkeypatch.setattr(results_module, "outputs_sha256", lambda outputs: "other bits")
    capsys.readouterr()
    other = finish(config(), workdir, CONSOLE)
    assert [one["same_program"] for one in other["forgetting"]] == [False]
    said = " ".join(capsys.readouterr().out.split())
    assert "Forgetting: 0 of 0 stored tasks" in said and "1 more were learned by other versions" in said


def test_a_task_is_learned_anew_as_its_next_version(config, workdir):
    """With what was refused otherwise; of its first version nothing is taken, and nothing is changed."""
    forget_the_source(workdir)
    first = Pool.open(workdir / "pool")
    before = first.effective("birds@1")["params"]["head"]["bias"].tobytes()
    other = config(overrides={"birds": {"crop": "stretch"}}, relearn=("birds",))
    run.learn(other, workdir, CONSOLE)
    pool = Pool.open(workdir / "pool")
    assert [one.name for one in pool.index.versions] == ["birds@1", "birds@2"]
    assert pool.version("birds").record[KEY]["preparation"]["crop"] == "stretch"
    assert pool.version("birds@1") == first.version("birds")
    assert pool.effective("birds@1")["params"]["head"]["bias"].tobytes() == before
    owners = {int(one) for owner, _ in pool.ownership("birds").values() for one in owner}
    assert owners == {0, 2}
    results = finish(other, workdir, CONSOLE)
    assert [row["version"] for row in results["rows"]] == [2]


def test_what_is_to_be_learned_anew_has_to_be_among_the_tasks(config):
    with pytest.raises(CwpsError, match="config.relearn names 'cars', which is not in config.tasks"):
        config(relearn=("cars",))


def test_a_run_that_learns_the_same_task_is_told_before_it_trains(config, workdir):
    """One that learns another task just waits for its turn to write."""
    pool = Pool.open(workdir / "pool")
    with pool.learning("cars"):
        with pytest.raises(CwpsError, match="'cars' is being learned by process [0-9]+; try again when"):
            run.learn(config(tasks=("birds", "cars")), workdir, CONSOLE)
        assert Pool.open(workdir / "pool").tasks == ("birds",)
        with pool.learning("cars"):  # its own holder may
            pass
    run.learn(config(tasks=("cars",)), workdir, CONSOLE)
    assert Pool.open(workdir / "pool").tasks == ("birds", "cars")
    assert pool.tasks == ("birds",)
    with pool.learning("boats"):
        assert pool.tasks == ("birds", "cars"), "what others have stored is seen when learning begins"


def test_a_renamed_task_is_measured_on_the_data_that_it_was_learned_from(config, workdir):
    """Its name in the pool is not where its data are."""
    before = finish(config(), workdir, CONSOLE)
    Pool.open(workdir / "pool").rename("birds", "vögel")
    results = finish(config(tasks=("cars",)), workdir, CONSOLE)
    assert results["not_measured"] == [] and [row["task"] for row in results["rows"]] == ["vögel"]
    assert results["rows"][0]["accuracy"] == before["rows"][0]["accuracy"]
    assert results["forgetting"][0]["logits_sha256_at_end"] == before["forgetting"][0]["logits_sha256_at_end"]
    assert evaluate(Pool.open(workdir / "pool"), "vögel").metric == before["rows"][0]["accuracy"]
