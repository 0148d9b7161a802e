"""The pool: what comes back is what was stored, and nothing stored ever changes."""

import hashlib
import json
import pathlib
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest

from cwps_jax.core import masks
from cwps_jax.core.mixing import mix
from cwps_jax.core.search import Search, Source
from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.errors import CwpsError
from cwps_jax.learn import composite_parent
from cwps_jax.store import Pool, arrays


def random_gates(layout, seed: int, share: float = 0.5) -> dict:
    rng = np.random.default_rng(seed)
    return unflatten({layer.path: rng.random(layer.gate_shape) < share for layer in layout.layers})


def add_task(pool: Pool, name: str, variables: dict, moved, seed: int, search=Search("l2")) -> dict:
    """Adds a task whose child is a moved pre-trained model; returns its plain variables."""
    child = moved(variables["params"], 0.5, seed)
    parent, sources = composite_parent(child, pool, search)
    gates = random_gates(pool.layout, seed)
    params = jax.device_get(mix(parent, child, gates))
    other = {"batch_stats": moved(variables["batch_stats"], 0.1, seed)}
    pool.add(name, params, other, gates, jax.device_get(sources), pool.pooled().names, {"note": seed})
    return {"params": params, **other}


@pytest.fixture
def pool(tmp_path, tiny_variables, tiny_layout) -> Pool:
    return Pool.create(tmp_path / "pool", tiny_variables, tiny_layout, backbone="tiny")


def file_hashes(folder: pathlib.Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "index.json"
    }


@pytest.mark.parametrize("search", [Search("l2"), Search("l2", candidates="any"), Search("change", z=0.5)])
def test_every_task_comes_back_to_the_bit(pool, tiny_variables, moved, search):
    stored = {n: add_task(pool, n, tiny_variables, moved, s, search) for s, n in enumerate("abcd")}
    reopened = Pool.open(pool.folder)
    for name, variables in stored.items():
        chex.assert_trees_all_equal(reopened.effective(name), variables)
    chex.assert_trees_all_equal(reopened.effective("pretrained"), tiny_variables)


def test_a_borrowed_channel_is_owned_by_the_version_that_stores_it(pool, tiny_variables, moved, tiny_layout):
    """c borrows of b what b itself borrowed of a: the owner is a, so no look-up follows a chain."""
    layer = tiny_layout.layers[0]

    def add(name, open_channel, borrowed_from):
        names = pool.pooled().names
        child = moved(tiny_variables["params"], 0.5, len(names))
        gates = unflatten({one.path: np.zeros(one.gate_shape, bool) for one in tiny_layout.layers})
        flatten(gates)[layer.path].ravel()[open_channel] = open_channel is not None
        model = np.full(layer.channels, names.index(borrowed_from))
        source = {layer.path: Source(model, np.arange(layer.channels))}
        parent = pool.effective(borrowed_from)["params"]
        params = jax.device_get(mix({**tiny_variables["params"], "conv1": parent["conv1"]}, child, gates))
        pool.add(name, params, {}, gates, source, names, {})

    add("a", 2, "pretrained")
    add("b", 4, "a")
    add("c", None, "b")
    owner, row = pool.ownership(pool.version("c"))[layer.path]
    assert owner.tolist() == [0, 0, 1, 0, 2, 0]
    assert row[2] == 0 and row[4] == 0 and row[5] == 5
    relation = pool.relation("c")
    total = sum(one.parameters for one in tiny_layout.layers)
    assert relation["a"] == pytest.approx(layer.channel_parameters / total)
    assert sum(relation.values()) == pytest.approx(1)


def test_adding_a_task_leaves_every_earlier_file_as_it_was(pool, tiny_variables, moved):
    add_task(pool, "a", tiny_variables, moved, 1)
    before = file_hashes(pool.folder)
    add_task(pool, "b", tiny_variables, moved, 2)
    after = file_hashes(pool.folder)
    assert before.items() <= after.items()
    assert len(after) > len(before)


def test_a_second_version_leaves_the_first_readable(pool, tiny_variables, moved):
    first = add_task(pool, "a", tiny_variables, moved, 1)
    second = add_task(pool, "a", tiny_variables, moved, 2)
    assert pool.tasks == ("a",)
    chex.assert_trees_all_equal(pool.effective("a@1"), first)
    chex.assert_trees_all_equal(pool.effective("a"), second)


def test_the_count_agrees_with_the_stored_arrays(pool, tiny_variables, moved, tiny_layout):
    add_task(pool, "a", tiny_variables, moved, 3)
    version = pool.version("a")
    tree = flatten(arrays.load(pool.folder / "tasks" / "a@1", version.sha256))
    gates = flatten(pool.gates("a"))
    active = sum(int(gates[layer.path].sum()) * layer.channel_parameters for layer in tiny_layout.layers)
    count = pool.count("a")
    assert count.active == active == sum(v.size for k, v in tree.items() if k.startswith("active/"))
    assert count.private == tiny_layout.private_parameters
    assert count.head == sum(v.size for k, v in tree.items() if k.startswith("own/head/"))
    assert version.bytes == sum(leaf.nbytes for leaf in tree.values())


def test_a_flipped_bit_is_an_error(pool, tiny_variables, moved):
    """Orbax itself loads it silently wrong."""
    add_task(pool, "a", tiny_variables, moved, 1)
    folder = pool.folder / "tasks" / "a@1"
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(CwpsError, match="a@1: damaged"):
            Pool.open(pool.folder).effective("a")
        path.write_bytes(content)
    Pool.open(pool.folder).effective("a")


@pytest.mark.parametrize("harm", ["delete a file", "truncate a file", "delete the folder"])
def test_a_damaged_tree_is_one_clear_line(pool, tiny_variables, moved, harm):
    add_task(pool, "a", tiny_variables, moved, 1)
    folder = pool.folder / "tasks" / "a@1"
    if harm == "delete the folder":
        folder.rename(pool.folder / "elsewhere")
    else:
        for path in folder.rglob("manifest.ocdbt"):
            path.unlink() if harm == "delete a file" else path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CwpsError, match="a@1: (missing|damaged)") as error:
        Pool.open(pool.folder).effective("a")
    assert "\n" not in str(error.value)


def test_an_interrupted_save_is_not_in_the_index_and_is_replaced(pool, tiny_variables, moved, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("cwps_jax.store.index.Index.write", lambda *_: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            add_task(pool, "a", tiny_variables, moved, 1)
    assert Pool.open(pool.folder).tasks == ()
    stored = add_task(Pool.open(pool.folder), "a", tiny_variables, moved, 2)
    chex.assert_trees_all_equal(Pool.open(pool.folder).effective("a"), stored)


def test_two_writers_do_not_lose_each_others_tasks(pool, tiny_variables, moved):
    other = Pool.open(pool.folder)
    add_task(pool, "a", tiny_variables, moved, 1)
    with pytest.raises(CwpsError, match="another process has changed this pool"):
        add_task(other, "b", tiny_variables, moved, 2)
    assert Pool.open(pool.folder).tasks == ("a",)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 99}'])
def test_an_index_that_is_none_is_refused(pool, content):
    (pool.folder / "index.json").write_text(content)
    with pytest.raises(CwpsError, match="index"):
        Pool.open(pool.folder)


def test_there_is_no_pool_and_no_such_task(pool, tmp_path, tiny_variables, tiny_layout):
    with pytest.raises(CwpsError, match="no pool here"):
        Pool.open(tmp_path / "nothing")
    with pytest.raises(CwpsError, match="no task 'birds'.*pretrained"):
        pool.effective("birds")
    other = {"params": {**tiny_variables["params"], "conv1": {"kernel": np.zeros((5, 5, 1, 6))}}}
    with pytest.raises(CwpsError, match=r"conv1/kernel: \(5, 5, 1, 6\) in the variables, \(3, 3, 1, 6\)"):
        Pool.create(tmp_path / "other", other, tiny_layout)
    with pytest.raises(CwpsError, match="a pool already"):
        Pool.create(pool.folder, tiny_variables, tiny_layout)


@pytest.mark.parametrize("name", ["pretrained", "a/b", "..", "a@1", "", " a"])
def test_names_that_cannot_be_a_tasks(pool, tiny_variables, moved, name):
    with pytest.raises(CwpsError, match="task"):
        add_task(pool, name, tiny_variables, moved, 1)
    assert Pool.open(pool.folder).tasks == ()


def test_a_search_of_a_pool_leaves_nothing_on_the_devices(pool, tiny_variables, moved):
    stored = [add_task(pool, name, tiny_variables, moved, seed) for seed, name in enumerate("ab")]
    child = jax.device_get(stored[1]["params"])
    before = jax.live_arrays()  # referred to here, so that none of them goes
    parent, _ = composite_parent(child, pool, Search("l2"))
    assert all(isinstance(leaf, np.ndarray) for leaf in flatten(parent).values())
    assert sum(leaf.nbytes for leaf in jax.live_arrays()) == sum(leaf.nbytes for leaf in before)


def test_the_search_sees_every_stored_model(pool, tiny_variables, moved):
    """A child that equals a stored model finds its channels there, borrowed ones at their owner."""
    add_task(pool, "a", tiny_variables, moved, 1)
    stored = add_task(pool, "b", tiny_variables, moved, 2)
    parent, sources = composite_parent(stored["params"], pool, Search("l2"))
    child = flatten(stored["params"])
    for path, leaf in flatten(parent).items():
        np.testing.assert_array_equal(leaf, child[path])
    ownership = pool.ownership(pool.version("b"))
    for path, source in sources.items():
        # Ties go to the oldest: a channel that b borrowed is found at the model that stores it.
        np.testing.assert_array_equal(np.asarray(source.model), ownership[path][0])


def test_logits_are_the_same_bits_in_a_fresh_process(pool, tiny_variables, moved, tiny_model, tmp_path):
    stored = add_task(pool, "a", tiny_variables, moved, 1)
    images = np.random.default_rng(0).normal(size=(16, 8, 8, 1)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    logits = jax.jit(tiny_model.apply)(stored, images)
    script = (
        "import sys, jax, numpy as np\n"
        f"sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})\n"
        "from conftest import TinyModel\n"
        "from cwps_jax import Pool\n"
        f"variables = Pool.open({str(pool.folder)!r}).effective('a')\n"
        f"images = np.load({str(tmp_path / 'images.npy')!r})\n"
        "print(np.asarray(jax.jit(TinyModel().apply)(variables, images)).tobytes().hex())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == np.asarray(logits).tobytes().hex()


def test_budgets_of_one_soft_run_nest(tiny_layout):
    """Several budgets can be hardened from one set of scores; a smaller one keeps a part of a larger one."""
    rng = np.random.default_rng(0)
    scores = unflatten(
        {one.path: rng.uniform(0.1, 1, one.gate_shape).astype(np.float32) for one in tiny_layout.layers}
    )
    small, large = (flatten(masks.harden(scores, tiny_layout, budget)) for budget in (0.3, 0.7))
    for path in small:
        assert not np.any(small[path] & ~large[path])


def test_the_index_says_its_format(pool):
    assert json.loads((pool.folder / "index.json").read_text())["format"] == 1
