"""Pools of earlier formats, written by the code of their time, stay readable, searched and added to."""

import dataclasses
import json
import pathlib
import shutil

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import cwps_jax as cwps
from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.store.index import FORMAT

GOLDEN = pathlib.Path(__file__).parent / "golden"
NAMES = ("pretrained", "a", "b", "tuned", "probed")
MANY = {"cwps", "packnet", "atlas", "piggyback"}
FEW = {"cwps", "finetune"}
# Those of 5 are in few bits, those of 6 entropy-coded, and those of 7 without norm statistics.
METHODS_OF = {3: MANY, 4: MANY, 5: {*FEW, "ssf", "packnet"}, 6: FEW, 7: FEW}


@pytest.fixture(scope="module")
def golden() -> dict:
    """{path: array} of what the code that wrote the pool gave."""
    return load_file(GOLDEN / "pool_format_2.safetensors")


@pytest.fixture
def pool(tmp_path) -> cwps.Pool:
    return cwps.Pool.open(shutil.copytree(GOLDEN / "pool_format_2", tmp_path / "pool"))


def variables_of(golden: dict, name: str) -> dict:
    within = f"{name}/variables/"
    return unflatten({p.removeprefix(within): leaf for p, leaf in golden.items() if p.startswith(within)})


def files_of(folder: pathlib.Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "index.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def assert_same_bits(ours: dict, theirs: dict) -> None:
    ours, theirs = flatten(ours), flatten(theirs)
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        one, other = np.asarray(leaf), np.asarray(theirs[path])
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes()), path


@pytest.mark.parametrize("number", [3, 4, 5, 6, 7])
def test_a_pool_of_many_methods_has_models_the_same_to_the_bit(number, tiny_model, tmp_path):
    """It is read where it lies, and again after it was written to, which keeps its folders' names."""
    wanted = load_file(GOLDEN / f"pool_format_{number}.safetensors")
    old = GOLDEN / f"pool_format_{number}"
    index = json.loads((old / "index.json").read_text())
    assert index["format"] == number
    names = ("pretrained", *(version["task"] for version in index["versions"]))
    changed = cwps.Pool.open(shutil.copytree(old, tmp_path / "pool"))
    assert {changed.version(name).method for name in names[1:]} >= METHODS_OF[number]
    before = files_of(changed.folder)
    changed.rename("first", "renamed")
    changed.rename("renamed", "first")
    changed.copy("a", changed, "again")
    assert json.loads((changed.folder / "index.json").read_text())["format"] == FORMAT
    assert before.items() <= files_of(changed.folder).items()
    for pool in (cwps.Pool.open(old), changed, cwps.Pool.open(changed.folder)):
        assert pool.verify() == []
        for name in names:
            variables = pool.effective(name)
            assert_same_bits(variables, variables_of(wanted, name))
            logits = jax.jit(pool.model(name, tiny_model).apply)(variables, wanted["images"])
            np.testing.assert_allclose(logits, wanted[f"{name}/logits"], rtol=1e-5, atol=1e-5)
    assert_same_bits(changed.effective("again"), variables_of(wanted, "a"))


def test_it_holds_what_the_test_names():
    index = json.loads((GOLDEN / "pool_format_2" / "index.json").read_text())
    assert index["format"] == 2
    assert [version["task"] for version in index["versions"]] == [*NAMES[1:]]


@pytest.mark.parametrize("name", NAMES)
def test_its_models_are_the_same_to_the_bit(name, golden, tiny_model):
    pool = cwps.Pool.open(GOLDEN / "pool_format_2")
    variables = pool.effective(name)
    assert_same_bits(variables, variables_of(golden, name))
    model = pool.model(name, tiny_model)
    logits = jax.jit(model.apply)(variables, golden["images"])
    np.testing.assert_allclose(logits, golden[f"{name}/logits"], rtol=1e-5, atol=1e-5)


def test_all_of_its_tasks_share_channels_and_are_counted(golden, tiny_layout):
    pool = cwps.Pool.open(GOLDEN / "pool_format_2")
    assert pool.layout == tiny_layout
    assert pool.tasks == NAMES[1:]
    relations = {name: pool.relation(name) for name in pool.tasks}
    assert all(pool.shares_channels(name) for name in pool.tasks)
    assert relations["tuned"] == {"tuned": 1.0} and relations["probed"] == {"pretrained": 1.0}
    assert all(sum(row.values()) == pytest.approx(1) for row in relations.values())
    assert 0 < relations["a"]["a"] < 1 and 0 < relations["b"]["b"] < 1
    ratios = {name: pool.count(name).ratio for name in pool.tasks}
    assert ratios["tuned"] == 1.0
    # What was stored of a probe then: the norms too, which are the pre-trained model's.
    assert ratios["probed"] == pytest.approx(tiny_layout.private_parameters / tiny_layout.backbone_parameters)
    for name in ("a", "b"):
        opened = sum(
            int(np.sum(flatten(pool.gates(name))[layer.path])) * layer.channel_parameters
            for layer in tiny_layout.layers
        )
        assert pool.count(name).active == opened
        assert ratios[name] <= pool.version(name).record["budget"]


def test_it_is_searched_as_the_models_that_it_holds(golden):
    """A child that is a stored task finds each of its channels there, or where that was borrowed from."""
    pool = cwps.Pool.open(GOLDEN / "pool_format_2")
    assert pool.pooled().names == NAMES
    for name in ("a", "b", "tuned"):
        child = variables_of(golden, name)["params"]
        parent, sources = cwps.composite_parent(child, pool, cwps.Search("l2"))
        assert_same_bits(parent, {layer: child[layer] for layer in parent})
        owners = pool.ownership(name)
        for path, source in sources.items():
            np.testing.assert_array_equal(np.asarray(source.model), owners[path][0], err_msg=path)


def test_a_new_task_is_added_and_the_old_versions_stay(pool, golden, tiny_model):
    before = files_of(pool.folder)
    old = json.loads((pool.folder / "index.json").read_text())["versions"]
    rng = np.random.default_rng(0)
    image = rng.normal(size=(48, 8, 8, 1)).astype(np.float32)
    split = {"image": image, "label": rng.integers(0, 3, 48).astype(np.int32)}
    data = cwps.TaskData.from_arrays(split, {name: array[:8] for name, array in split.items()}, classes=3)
    config = cwps.TrainConfig(epochs=3, batch_size=16, budget=0.6)
    trainer = cwps.make_trainer(tiny_model, data, config=config)
    learned = cwps.learn_task(pool, "new", tiny_model, data, config=config, trainer=trainer)
    probe = dataclasses.replace(config, method="probe")
    probed = cwps.learn_task(pool, "head", tiny_model, data, config=probe, trainer=trainer)
    assert before.items() <= files_of(pool.folder).items()
    index = json.loads((pool.folder / "index.json").read_text())
    assert index["format"] == FORMAT
    for was, now in zip(old, index["versions"], strict=False):
        assert was.items() <= now.items()
        assert (now["method"], now["settings"], now["uses"], now["compared"]) == ("cwps", {}, [], False)
    reopened = cwps.Pool.open(pool.folder)
    assert reopened.tasks == (*NAMES[1:], "new", "head")
    for name in NAMES:
        assert_same_bits(reopened.effective(name), variables_of(golden, name))
    chex.assert_trees_all_equal(reopened.effective("new"), learned.variables)
    chex.assert_trees_all_equal(reopened.effective("head"), probed.variables)
