"""The pool: what comes back is what was stored, and nothing stored ever changes."""

import dataclasses
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import chex
import jax
import numpy as np
import pytest
from searched import OPTIONS, names

from cwps_jax.core import budgets
from cwps_jax.core.mixing import mix
from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.errors import CwpsError
from cwps_jax.learn import composite_parent
from cwps_jax.search.composite import Search, Source
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
    owner, row = pool.ownership("c")[layer.path]
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
    version, folder = pool.version("a"), pool.folder / "tasks" / "a@1"
    rows = arrays.load(folder / "rows", version.rows_sha256)
    own = arrays.load(folder / "own", version.own_sha256)
    count = pool.count("a")
    assert count.active == sum(leaf.size for leaf in rows.values()) > 0
    assert count.private == sum(own[f"params/{path}"].size for path in tiny_layout.private_paths) > 0
    assert count.head == sum(v.size for k, v in own.items() if k.startswith("params/head/")) > 0
    # The sketch is made from the rows and can be made anew: it is no part of the task.
    assert version.bytes == sum(leaf.nbytes for tree in (rows, own) for leaf in tree.values())
    assert count.bits == 8 * version.bytes
    sketch = arrays.load(folder / "sketch", version.sketch_sha256)
    assert sketch["values"].nbytes == count.active


@pytest.mark.parametrize("tree", ["rows", "own", "sketch"])
def test_a_flipped_bit_is_an_error(pool, tiny_variables, moved, tree):
    """Orbax itself loads it silently wrong."""
    child = add_task(pool, "a", tiny_variables, moved, 1)["params"]
    folder = pool.folder / "tasks" / "a@1" / tree
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert folder / "leaves.json" in files
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(CwpsError, match=f"a@1/{tree}: damaged"):
            opened = Pool.open(pool.folder)
            composite_parent(child, opened) if tree == "sketch" else opened.effective("a")
        path.write_bytes(content)
    Pool.open(pool.folder).effective("a")


@pytest.mark.parametrize("tree", ["rows", "own"])
@pytest.mark.parametrize("harm", ["delete a file", "truncate a file", "delete the folder"])
def test_a_damaged_tree_is_one_clear_line(pool, tiny_variables, moved, harm, tree):
    add_task(pool, "a", tiny_variables, moved, 1)
    folder = pool.folder / "tasks" / "a@1" / tree
    if harm == "delete the folder":
        folder.rename(pool.folder / "elsewhere")
    else:
        for path in folder.rglob("float32/0"):
            path.unlink() if harm == "delete a file" else path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CwpsError, match=f"a@1/{tree}: (missing|damaged)") as error:
        Pool.open(pool.folder).effective("a")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("moment", ["rows", "own", "index"])
def test_an_interrupted_save_is_not_in_the_index_and_is_replaced(
    pool, tiny_variables, moved, monkeypatch, moment
):
    save = arrays.save

    def interrupted(folder, tree):
        sha256 = save(folder, tree)
        if folder.name == moment:
            (folder / "arrays").rename(folder / "arrays.partial")
            raise OSError("full")
        return sha256

    with monkeypatch.context() as patch:
        patch.setattr("cwps_jax.store.arrays.save", interrupted)
        if moment == "index":
            patch.setattr(
                "cwps_jax.store.index.Index.write", lambda *_: (_ for _ in ()).throw(OSError("full"))
            )
        with pytest.raises(CwpsError, match="full"):
            add_task(pool, "a", tiny_variables, moved, 1)
    assert Pool.open(pool.folder).tasks == ()
    stored = add_task(Pool.open(pool.folder), "a", tiny_variables, moved, 2)
    chex.assert_trees_all_equal(Pool.open(pool.folder).effective("a"), stored)
    assert not list(pool.folder.rglob("*.partial"))


def add_borrower(pool: Pool, name: str, of: str, variables: dict) -> None:
    """Adds a task that has no channel of its own: all are those of another."""
    params, layers = pool.effective(of)["params"], pool.layout.layers
    number = pool.pooled().names.index(of)
    sources = {one.path: Source(np.full(one.channels, number), np.arange(one.channels)) for one in layers}
    closed = random_gates(pool.layout, 0, share=0)
    other = {"batch_stats": variables["batch_stats"]}
    pool.add(name, params, other, closed, sources, pool.pooled().names, {})


def test_a_version_that_others_borrow_of_is_not_removed(pool, tiny_variables, moved):
    stored = add_task(pool, "a", tiny_variables, moved, 1)
    for name in ("b", "c"):
        add_borrower(pool, name, "a", tiny_variables)
    index, files = (pool.folder / "index.json").read_bytes(), file_hashes(pool.folder)
    with pytest.raises(CwpsError, match=r"a@1 cannot be removed: b@1, c@1 are restored from it; .* those f"):
        pool.remove("a")
    assert ((pool.folder / "index.json").read_bytes(), file_hashes(pool.folder)) == (index, files)
    pool.remove("c@1")
    with pytest.raises(CwpsError, match=r"a@1 cannot be removed: b@1 is restored from it; remove that first"):
        pool.remove("a")
    chex.assert_trees_all_equal(Pool.open(pool.folder).effective("a"), stored)
    pool.remove("b")
    pool.remove("a")
    for one in (pool, Pool.open(pool.folder)):
        assert one.tasks == () and one.pooled().names == ("pretrained",)
    assert not list((pool.folder / "tasks").iterdir())
    chex.assert_trees_all_equal(Pool.open(pool.folder).effective("pretrained"), tiny_variables)


def test_what_is_stored_after_a_removal_is_read_as_it_is(pool, tiny_variables, moved):
    """Its number and its folder may be those of what was removed."""

    def add(name, seed):
        params, other = (
            moved(tiny_variables["params"], 0.5, seed),
            {"batch_stats": tiny_variables["batch_stats"]},
        )
        pool.add(name, params, other, random_gates(pool.layout, seed, 1), {}, ("pretrained",), {})
        composite_parent(params, pool)  # what is read is remembered
        chex.assert_trees_all_equal(pool.effective(name), {"params": params, **other})
        return {"params": params, **other}

    add("a", 1)
    second = add("a", 2)
    add("b", 3)
    pool.remove("b")
    pool.remove("a@1")
    third, fourth = add("a", 4), add("b", 5)
    for one in (pool, Pool.open(pool.folder)):
        for name, stored in {"a@2": second, "a@3": third, "a": third, "b@1": fourth}.items():
            chex.assert_trees_all_equal(one.effective(name), stored)
        parent, _ = composite_parent(fourth["params"], one, Search("l2"))
        chex.assert_trees_all_equal(parent, {layer: fourth["params"][layer] for layer in parent})
        with pytest.raises(CwpsError, match="no task 'a@1'"):
            one.effective("a@1")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"format": 99}'])
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
    ownership = pool.ownership("b")
    for path, source in sources.items():
        # Ties go to the oldest: a channel that b borrowed is found at the model that stores it.
        np.testing.assert_array_equal(np.asarray(source.model), ownership[path][0])


def test_rows_and_the_rest_are_read_apart(pool, tiny_variables, moved, tiny_layout):
    """Ownership, gates and counts need no rows; a borrower needs of others nothing but their rows."""
    stored = add_task(pool, "a", tiny_variables, moved, 1)
    closed = random_gates(tiny_layout, 0, share=0)
    layers = tiny_layout.layers
    of_a = {one.path: Source(np.ones(one.channels, int), np.arange(one.channels)) for one in layers}
    other = {"batch_stats": stored["batch_stats"]}
    pool.add("b", stored["params"], other, closed, of_a, pool.pooled().names, {})
    folder, away = pool.folder / "tasks" / "a@1", pool.folder / "away"
    known = lambda one: (one.count("a"), one.relation("a"), one.gates("a"), one.pooled().models.owner)
    expected = known(pool)
    (folder / "rows").rename(away)
    without = Pool.open(pool.folder)
    chex.assert_trees_all_equal(known(without), expected)
    with pytest.raises(CwpsError, match="a@1/rows: missing"):
        without.effective("b")
    away.rename(folder / "rows")
    (folder / "own").rename(away)
    chex.assert_trees_all_equal(Pool.open(pool.folder).effective("b"), stored)


@pytest.mark.parametrize("search", OPTIONS, ids=names)
def test_a_pool_of_an_earlier_release_is_searched_alike(search, pool, tiny_variables, moved):
    """Its versions have no sketches: they are made in memory, and nothing is written."""
    for number, name in enumerate("abc"):
        add_task(pool, name, tiny_variables, moved, number)
    child = moved(pool.effective("b")["params"], 0.1, 7)
    parent, sources = composite_parent(child, Pool.open(pool.folder), search)
    path = pool.folder / "index.json"
    index = json.loads(path.read_text())
    index["format"] = 2
    del index["next_id"]
    for version in index["versions"]:
        for key in ("sketch_sha256", "folder", "ratio"):
            del version[key]
        shutil.rmtree(pool.folder / "tasks" / f"{version['task']}@{version['version']}" / "sketch")
    path.write_text(json.dumps(index))
    old = Pool.open(pool.folder)
    chex.assert_trees_all_equal(composite_parent(child, old, search), (parent, sources))
    assert not list(pool.folder.rglob("sketch"))
    add_task(old, "d", tiny_variables, moved, 4)
    chex.assert_trees_all_equal(old.pooled("d").models.sketch(4), old.pooled().models.sketch(4))
    assert [version.sketch_sha256 != "" for version in Pool.open(pool.folder).index.versions] == [
        *3 * [False],
        True,
    ]


def test_a_search_reads_no_rows_that_sketches_decide(pool, tiny_variables, moved):
    """Of tasks of which the child comes near to one, the others' rows may be missing."""
    for number, name in enumerate("abc"):
        add_task(pool, name, tiny_variables, moved, number)
    child = pool.effective("b")["params"]
    expected = composite_parent(child, pool, Search("l2"))
    shutil.rmtree(pool.folder / "tasks" / "c@1" / "rows")
    chex.assert_trees_all_equal(composite_parent(child, Pool.open(pool.folder), Search("l2")), expected)


def test_threads_read_a_pool_at_once(pool, tiny_variables, moved, tiny_layout):
    wanted = {}
    for number in range(1, 9):
        params, gates = moved(tiny_variables["params"], 0.5, number), random_gates(tiny_layout, number)
        pool.add(f"task{number}", params, {}, gates, {}, ("pretrained",), {})
        leaves, flat_gates = flatten(params), flatten(gates)
        wanted[number] = {
            leaf: leaves[leaf].reshape(-1, layer.channels).T[flat_gates[layer.path].ravel()]
            for layer in tiny_layout.layers
            for leaf in layer.leaves
        }
    for _ in range(5):
        models = Pool.open(pool.folder).pooled().models
        with ThreadPoolExecutor(4) as executor:
            read = {
                number: dict(rows)
                for number, rows in zip(wanted, executor.map(models.read, wanted), strict=True)
            }
        chex.assert_trees_all_equal(read, wanted)
        for layer in tiny_layout.layers:
            for number, rows in wanted.items():
                assert np.sum(models.owner[layer.path][number] == number) == len(rows[layer.path])


DTYPES = ("float32", "bfloat16", "float16", "bool", "uint8", "uint16", "int32", "int64", "float64")


def test_every_array_comes_back_to_the_bit(tmp_path):
    rng = np.random.default_rng(0)

    def some(dtype):
        drawn = (100 * rng.standard_normal((4, 6))).astype(np.int8).astype(jax.numpy.dtype(dtype))
        return {"whole": drawn, "strided": drawn.T[::2], "none": drawn[:0], "scalar": drawn[0, 0].reshape(())}

    tree = {"deep": {dtype: some(dtype) for dtype in DTYPES}, "no int8": np.zeros((0, 3), np.int8)}
    sha256 = arrays.save(tmp_path / "tree", tree)
    loaded, flat = arrays.load(tmp_path / "tree", sha256), flatten(tree)
    assert list(flatten(loaded)) == list(flat)
    for path, leaf in flatten(loaded).items():
        same = type(leaf) is np.ndarray and leaf.dtype == flat[path].dtype and leaf.shape == flat[path].shape
        assert same and leaf.tobytes() == flat[path].tobytes(), path
    assert arrays.load(tmp_path / "empty", arrays.save(tmp_path / "empty", {"a": np.zeros(0)}))["a"].size == 0


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
    small, large = (flatten(budgets.harden(scores, tiny_layout, budget)) for budget in (0.3, 0.7))
    for path in small:
        assert not np.any(small[path] & ~large[path])


def test_the_index_says_its_format(pool):
    assert json.loads((pool.folder / "index.json").read_text())["format"] == 8


def test_what_stands_in_the_index_is_what_the_trees_say(pool, tiny_variables, moved):
    """A list of all tasks reads no tree; a pool of an earlier release is read instead, to the same bit."""
    assert pool.relation_matrix()[2].shape == (0, 1) and pool.total_ratio() == 1
    for seed, name in enumerate("abc"):
        add_task(pool, name, tiny_variables, moved, seed)
    index = pool.index
    versions = tuple(dataclasses.replace(one, owned=None) for one in index.versions)
    older = Pool(pool.folder, dataclasses.replace(index, versions=versions))
    for name in pool:
        assert older.relation(name) == pool.relation(name) and len(pool.version(name).owned) > 1
    tasks, owners, matrix = pool.relation_matrix()
    assert tasks == pool.tasks and owners == ("pretrained", *tasks)
    for task, row in zip(tasks, matrix, strict=True):
        shares = {owner: share for owner, share in zip(owners, row, strict=True) if share}
        assert shares == pool.relation(task)
    assert pool.total_ratio() == 1 + sum(pool.count(task).ratio for task in pool)


def test_the_pretrained_model_owns_all_of_its_channels(pool):
    assert pool.relation("pretrained") == {"pretrained": 1.0}
    for ask in (pool.version, pool.gates, pool.count):
        with pytest.raises(CwpsError, match="'pretrained' is the model that tasks start from"):
            ask("pretrained")
    for layer in pool.layout.layers:
        owner, row = pool.ownership("pretrained")[layer.path]
        assert owner.tolist() == [0] * layer.channels and row.tolist() == list(range(layer.channels))
