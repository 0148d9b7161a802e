"""A stored task's life after it is learned: no other model changes a bit, and no file is written in place."""

import dataclasses
import shutil

import chex
import numpy as np
import pytest
from test_store import add_borrower, add_task, file_hashes, random_gates

from cwps_jax import methods
from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.errors import CwpsError
from cwps_jax.learn import composite_parent
from cwps_jax.methods.method import Stored
from cwps_jax.search.composite import Search, Source
from cwps_jax.store import Pool


@pytest.fixture
def pool(tmp_path, tiny_variables, tiny_layout) -> Pool:
    return Pool.create(tmp_path / "pool", tiny_variables, tiny_layout, backbone="tiny")


def add_from(pool: Pool, name: str, of: str, variables: dict, moved, seed: int) -> dict:
    """Adds a task that has half of its channels of another model, as that has them, and half of its own."""
    number, layers = pool.pooled().names.index(of), pool.layout.layers
    sources = {one.path: Source(np.full(one.channels, number), np.arange(one.channels)) for one in layers}
    gates, child = random_gates(pool.layout, seed), moved(variables["params"], 0.5, seed)
    params = {key: dict(tree) for key, tree in child.items()}
    theirs, flat_gates = flatten(pool.effective(of)["params"]), flatten(gates)
    for layer in layers:
        for leaf in layer.leaves:
            module, kind = leaf.split("/")
            gate = flat_gates[layer.path].ravel()
            params[module][kind] = np.where(gate, flatten(child)[leaf], theirs[leaf])
    other = {"batch_stats": moved(variables["batch_stats"], 0.1, seed)}
    pool.add(name, params, other, gates, sources, pool.pooled().names, {"accuracy_when_learned": 0.5})
    return {"params": params, **other}


@pytest.fixture
def chain(pool, tiny_variables, moved) -> tuple[Pool, dict]:
    """Five tasks, each borrowing of the one before and so of all earlier ones; and another of the second."""
    stored = {}
    for seed, (name, of) in enumerate(zip("abcde", ("pretrained", *"abcd"), strict=False)):
        stored[name] = add_from(pool, name, of, tiny_variables, moved, seed)
    stored["f"] = add_from(pool, "f", "b", tiny_variables, moved, 9)
    return pool, stored


def assert_all(pool: Pool, stored: dict) -> None:
    """All models are the same to the bit, here and for who opens the pool now; nothing is damaged."""
    for one in (pool, Pool.open(pool.folder)):
        assert set(one.tasks) == set(stored)
        assert one.verify() == []
        for name, variables in stored.items():
            chex.assert_trees_all_equal(one.effective(name), variables)
            assert sum(one.relation(name).values()) == pytest.approx(1)


def test_a_version_is_removed_and_its_rows_find_a_new_home(chain):
    pool, stored = chain
    kept = {name: pool.count(name).active for name in stored}
    owned = sum(pool.count(name).active for name in stored)
    for name in "abfdce":
        before, order = {one.id for one in pool.index.versions}, [one for one in pool.tasks if one != name]
        pool.remove(name, rehome=True)
        del stored[name]
        assert [*pool.tasks] == order
        assert_all(pool, stored)
        # No number stands for other rows than before: who has read it is not deceived.
        fresh = {one.id for one in pool.index.versions} - before
        assert not fresh or min(fresh) > max(before)
        now = sum(pool.count(one).active for one in stored)
        assert now <= owned, "a row that several need was stored more than once"
        owned = now
        folders = {path.name for path in (pool.folder / "tasks").iterdir()}
        assert folders == {one.folder for one in pool.index.versions}
    assert kept["a"] > 0 and pool.tasks == ()


def test_rehoming_touches_no_file_of_who_does_not_borrow(chain, tiny_variables, moved):
    pool, stored = chain
    stored["apart"] = add_from(pool, "apart", "pretrained", tiny_variables, moved, 20)
    apart = pool.version("apart")
    before = file_hashes(pool.folder / "tasks" / apart.folder)
    pool.remove("b", rehome=True)
    del stored["b"]
    assert_all(pool, stored)
    assert pool.version("apart") == apart
    assert file_hashes(pool.folder / "tasks" / apart.folder) == before


def test_what_is_restored_from_a_whole_model_is_not_rehomed(pool, tiny_variables, moved, tiny_layout):
    stored = {"a": add_from(pool, "a", "pretrained", tiny_variables, moved, 1)}
    stored["b"] = add_from(pool, "b", "a", tiny_variables, moved, 2)
    paths = tiny_layout.backbone_shapes
    own = {
        "coefficients": unflatten({path: np.full(1, 0.5, np.float32) for path in paths}),
        "params": {"head": tiny_variables["params"]["head"]},
        "other": {"batch_stats": tiny_variables["batch_stats"]},
    }
    pool.add_stored("sum", methods.Atlas(), Stored(own, uses=("b",)), {})
    total = pool.effective("sum")
    files = file_hashes(pool.folder)
    with pytest.raises(CwpsError, match=r"b@1 cannot be removed: .* sum@1, restored from its whole model"):
        pool.remove("b", rehome=True)
    assert file_hashes(pool.folder) == files
    pool.remove("a", rehome=True)  # b is stored anew, with another number, and the sum is still of b
    for one in (pool, Pool.open(pool.folder)):
        assert one.version("sum").uses == (one.version("b").id,)
        chex.assert_trees_all_equal(one.effective("sum"), total)
        chex.assert_trees_all_equal(one.effective("b"), stored["b"])


def test_a_renamed_task_is_the_same_files_under_another_name(chain, tiny_variables, moved):
    pool, stored = chain
    files = file_hashes(pool.folder)
    pool.rename("b", "birds")
    stored["birds"] = stored.pop("b")
    assert file_hashes(pool.folder) == files
    assert pool.tasks == ("a", "birds", "c", "d", "e", "f")
    assert_all(pool, stored)
    assert "birds" in pool.relation("c") and "b" not in pool.relation("c")
    stored["b"] = add_task(pool, "b", tiny_variables, moved, 30)  # whose folder's name is taken
    assert pool.version("b@1").folder != pool.version("birds@1").folder
    assert_all(pool, stored)
    for old, new, error in (
        ("b", "birds", "'birds' is in this pool already"),
        ("b", "b@3", "cannot be a task's name"),
        ("b@1", "c", "'b@1' is one version; rename its task"),
        ("bird", "x", "no task 'bird' in this pool; did you mean 'birds'"),
        ("pretrained", "x", "'pretrained' is the model that tasks start from, and not a task"),
    ):
        with pytest.raises(CwpsError, match=error):
            pool.rename(old, new)


def test_a_renamed_task_takes_compared_models_with_it(pool, tiny_variables, moved):
    add_task(pool, "a", tiny_variables, moved, 1)
    trees = {"params": tiny_variables["params"], "other": {"batch_stats": tiny_variables["batch_stats"]}}
    pool.add_stored("a+finetune", methods.resolve("finetune"), Stored(trees), {}, compared=True)
    pool.rename("a", "b")
    assert [one.task for one in pool.index.versions] == ["b", "b+finetune"]


def test_a_task_learned_anew_and_compacted(pool, tiny_variables, moved):
    first = add_from(pool, "a", "pretrained", tiny_variables, moved, 1)
    add_from(pool, "b", "a", tiny_variables, moved, 2)  # borrows of a@1
    second = add_task(pool, "a", tiny_variables, moved, 3, Search("l2"))
    third = add_from(pool, "a", "pretrained", tiny_variables, moved, 4)
    leftover = pool.folder / "tasks" / "killed@1"
    shutil.copytree(pool.folder / "tasks" / "a@1", leftover)
    for name, variables in {"a@1": first, "a@2": second, "a": third}.items():
        chex.assert_trees_all_equal(pool.effective(name), variables)
    assert pool.compact() == ("tasks/killed@1",) and not leftover.exists()
    assert pool.compact() == ()
    assert pool.compact(older=True) == ("a@2",)  # a@1 has rows that b borrows
    assert not (pool.folder / "tasks" / "a@2").exists()
    assert_all(pool, {"a": third, "b": pool.effective("b")})
    chex.assert_trees_all_equal(Pool.open(pool.folder).effective("a@1"), first)


def test_a_copy_has_all_rows_that_it_needs(chain, tmp_path, tiny_variables, tiny_layout):
    pool, stored = chain
    files = file_hashes(pool.folder)
    to = Pool.create(tmp_path / "other", tiny_variables, tiny_layout, backbone="tiny")
    version = pool.copy("c", to, "copied")
    assert (version.name, version.record) == ("copied@1", pool.version("c").record)
    assert_all(to, {"copied": stored["c"]})
    assert to.relation("copied").keys() <= {"pretrained", "copied"}
    assert to.count("copied").active > pool.count("c").active
    with pytest.raises(CwpsError, match="'copied' is in this pool already; give the copy another name"):
        pool.copy("d", to, "copied")
    # Of tasks that go one after the other nothing is stored twice.
    whole = Pool.create(tmp_path / "whole", tiny_variables, tiny_layout, backbone="tiny")
    for name in pool.tasks:
        pool.copy(name, whole)
    assert_all(whole, stored)
    assert {name: whole.count(name) for name in stored} == {name: pool.count(name) for name in stored}
    assert {name: whole.relation(name) for name in stored} == {name: pool.relation(name) for name in stored}
    assert file_hashes(pool.folder) == files


def test_a_copy_into_a_pool_of_another_model_is_refused(chain, tmp_path, tiny_variables, tiny_layout, moved):
    pool, _ = chain
    other = {**tiny_variables, "params": moved(tiny_variables["params"], 0.1, 1)}
    to = Pool.create(tmp_path / "other", other, tiny_layout, backbone="tiny")
    with pytest.raises(CwpsError, match="other: its pre-trained model is not that of .*pool; copy c@1 into"):
        pool.copy("c", to)
    assert to.tasks == ()


def test_a_copied_pool_is_searched_alike(chain, tmp_path, tiny_variables, tiny_layout, moved):
    pool, stored = chain
    child = moved(stored["c"]["params"], 0.1, 5)
    parent, _ = composite_parent(child, pool, Search("l2"))
    pool.remove("b", rehome=True)
    again, _ = composite_parent(child, Pool.open(pool.folder), Search("l2"))
    assert parent.keys() == again.keys()
    exact, _ = composite_parent(stored["d"]["params"], pool, Search("l2"))
    chex.assert_trees_all_equal(
        flatten(exact), {path: flatten(stored["d"]["params"])[path] for path in flatten(exact)}
    )


@pytest.mark.parametrize(
    ("tree", "needing"), [("own", ["b"]), ("rows", ["b", "c", "d", "f"]), ("sketch", [])]
)
def test_verify_names_what_is_damaged_and_who_needs_it(chain, tree, needing):
    pool, _ = chain
    needed = [one for one in pool.tasks if one == "b" or "b" in pool.relation(one)]
    for file in (pool.folder / "tasks" / "b@1" / tree).rglob("0"):
        file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1]))
    (damage,) = pool.verify()
    assert damage.where == f"tasks/b@1/{tree}" and "damaged" in damage.problem
    expected = needed if tree == "rows" else needing
    assert damage.versions == tuple(f"{name}@1" for name in expected)
    assert {"b", "c"} <= {*needed}


def test_verify_looks_up_every_owner(chain):
    pool, _ = chain
    assert pool.verify() == []
    wrong = tuple(one for one in pool.index.versions if one.task != "a")
    dataclasses.replace(pool.index, versions=wrong).write(pool.folder)
    found = Pool.open(pool.folder).verify()
    assert {one.where for one in found} == {
        f"tasks/{name}@1/own" for name in "bcdef" if "a" in pool.relation(name)
    }
    assert all("not in the pool" in one.problem for one in found)
    (pool.folder / "pretrained" / "leaves.json").write_text("{}")
    first = pool.verify()[0]
    assert (first.where, len(first.versions)) == ("pretrained", 6)


def test_a_pool_is_a_collection_of_its_tasks(chain, pool, tiny_variables):
    assert (len(pool), [*pool]) == (6, [*"abcdef"])
    assert "a" in pool and "a@1" in pool and "g" not in pool
    lines = repr(pool).splitlines()
    assert lines[0] == f"Pool {pool.folder} of tiny: 6 tasks"
    assert lines[1].split() == ["task", "version", "method", "kept", "bytes", "accuracy"]
    kept, size = f"{pool.count('b').ratio:.1%}", f"{pool.version('b').bytes:,}"
    assert lines[3].split() == ["b", "1", "cwps", kept, size, "0.500"]
    add_borrower(pool, "g", "a", tiny_variables)
    shutil.rmtree(pool.folder / "tasks")
    assert len(repr(Pool.open(pool.folder)).splitlines()) == 9, "it reads no tree"


def test_a_pool_without_tasks_is_still_one(pool):
    assert len(pool) == 0 and bool(pool)
    assert repr(pool) == f"Pool {pool.folder} of tiny: 0 tasks"


def test_a_name_that_is_not_there_names_the_nearest(pool, tiny_variables, moved):
    for seed, name in enumerate(("birds", "cars")):
        add_from(pool, name, "pretrained", tiny_variables, moved, seed)
    for ask in (pool.effective, pool.version, pool.remove, pool.relation, pool.count, pool.gates):
        with pytest.raises(
            CwpsError, match=r"no task 'brids' .* did you mean 'birds'\? it has pretrained, birds, cars$"
        ):
            ask("brids")
    with pytest.raises(CwpsError, match=r"no task 'zzz' in this pool; it has pretrained, birds, cars$"):
        pool.copy("zzz", pool)
