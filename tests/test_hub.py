"""push_to_hub and from_hub, against a stand-in on this machine."""

import sys

import chex
import numpy as np
import pytest
import stand_in_hub

import cwps_jax as cwps

constants = pytest.importorskip("huggingface_hub.constants")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with stand_in_hub.running() as hub:
        template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        yield hub


@pytest.fixture
def pool(tmp_path, tiny_variables, tiny_layout, moved) -> cwps.Pool:
    """A pool with two tasks, of which each stores its own network whole."""
    pool = cwps.Pool.create(tmp_path / "pool", tiny_variables, tiny_layout, backbone="tiny")
    for seed, name in enumerate(("birds", "cars")):
        gates = {layer.path: np.ones(layer.gate_shape, bool) for layer in tiny_layout.layers}
        params = moved(tiny_variables["params"], 0.5, seed)
        other = {"batch_stats": tiny_variables["batch_stats"]}
        pool.add(name, params, other, cwps.unflatten(gates), {}, pool.pooled().names, {"note": seed})
    return pool


def test_a_pool_goes_to_the_hub_and_comes_back_to_the_bit(hub, pool, tmp_path):
    address = cwps.push_to_hub(pool, "me/animals")
    assert address == f"{hub.address}/me/animals/commit/{stand_in_hub.ID}"
    assert hub.commits == ["birds, cars: stored by cwps_jax"]
    assert {"README.md", "index.json"} <= hub.files.keys()
    assert not any(name.startswith(".") for name in hub.files)
    brought = cwps.from_hub("me/animals", tmp_path / "here")
    assert brought.tasks == ("birds", "cars") and brought.verify() == []
    for name in (*pool.tasks, "pretrained"):
        chex.assert_trees_all_equal(brought.effective(name), pool.effective(name))
    assert not (tmp_path / "here" / ".cache").exists()


def test_a_second_push_leaves_what_is_not_the_pools(hub, pool):
    cwps.push_to_hub(pool, "me/animals")
    hub.files["LICENSE"] = b"mine"
    cwps.push_to_hub(pool, "me/animals", tasks="cars")
    assert hub.files["LICENSE"] == b"mine"
    assert not any(name.startswith("tasks/birds") for name in hub.files)


def test_what_is_damaged_on_the_way_does_not_appear(hub, pool, tmp_path):
    cwps.push_to_hub(pool, "me/animals")
    name = next(name for name in hub.files if name.startswith("tasks/cars") and len(hub.files[name]) > 500)
    hub.files[name] = bytes(len(hub.files[name]))
    with pytest.raises(cwps.CwpsError, match="me/animals: 1 damaged, the first .*cars.*; push it again"):
        cwps.from_hub("me/animals", tmp_path / "here")
    assert [one.name for one in tmp_path.iterdir() if "here" in one.name] == []


def test_what_the_hub_refuses_is_one_line(hub, pool, tmp_path, monkeypatch):
    with pytest.raises(cwps.CwpsError, match="^me/nothing: could not be brought from the hub: ") as refused:
        cwps.from_hub("me/nothing", tmp_path / "here")
    assert "\n" not in str(refused.value)
    with pytest.raises(cwps.CwpsError, match="is there already; open it by Pool.open"):
        cwps.from_hub("me/animals", pool.folder)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody answers
    with pytest.raises(cwps.CwpsError, match="^me/animals: could not be brought to the hub: "):
        cwps.push_to_hub(pool, "me/animals")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(cwps.CwpsError, match=r"needs huggingface_hub.*pip install 'cwps_jax\[hub\]'"):
        cwps.push_to_hub(pool, "me/animals")
