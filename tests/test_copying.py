"""Versions that go from pool to pool: with all that they need, the same to the bit, or not at all."""

import chex
import numpy as np
import pytest
from test_lifecycle import add_from
from test_store import file_hashes

from cwps_jax import methods
from cwps_jax.core.trees import unflatten
from cwps_jax.errors import CwpsError
from cwps_jax.methods.channels import pack_bits
from cwps_jax.methods.method import Stored
from cwps_jax.methods.packnet import PackNet, _place
from cwps_jax.store import Pool


def add_sum(pool: Pool, name: str, of: tuple[str, ...], variables: dict) -> dict:
    """Adds a task that is a combination of whole other tasks, as aTLAS stores it."""
    shares = unflatten({path: np.full(len(of), 0.5, np.float32) for path in pool.layout.backbone_shapes})
    own = {
        "coefficients": shares,
        "params": {"head": variables["params"]["head"]},
        "other": {"batch_stats": variables["batch_stats"]},
    }
    pool.add_stored(name, methods.Atlas(), Stored(own, uses=of), {"is": name})
    return pool.effective(name)


def add_packed(pool: Pool, name: str, variables: dict) -> dict:
    """Adds a task by PackNet, restored from what all earlier ones of it store."""
    of = tuple(one.name for one in pool.index.versions if one.method == "packnet")
    kernels, free = PackNet()._pruned(pool.layout, pool._trees.pretrained())
    rng = np.random.default_rng(len(of))
    for used in of:
        _place(kernels, free, pool._trees.own(pool.version(used)))
    mine = {path: rng.random(int(one.sum())) < 0.3 for path, one in free.items()}
    own = {
        "params": {"head": variables["params"]["head"]},
        "masks": unflatten({path: pack_bits(one) for path, one in mine.items()}),
        "free": np.asarray(sum(int(one.sum()) for one in free.values())),
        "weights": unflatten({path: rng.random(int(one.sum()), np.float32) for path, one in mine.items()}),
    }
    pool.add_stored(name, PackNet(), Stored(own, uses=of), {"is": name})
    return pool.effective(name)


@pytest.fixture
def make(tmp_path, tiny_variables, tiny_layout):
    return lambda name: Pool.create(tmp_path / name, tiny_variables, tiny_layout, backbone="tiny")


@pytest.fixture
def full(make, tiny_variables, moved) -> tuple[Pool, dict]:
    """A pool of channels, of sums of whole tasks, and of packed ones."""
    pool, stored = make("pool"), {}
    for seed, (name, of) in enumerate((("a", "pretrained"), ("b", "a"), ("c", "b"))):
        stored[name] = add_from(pool, name, of, tiny_variables, moved, seed)
    stored["sum"] = add_sum(pool, "sum", ("b", "c"), tiny_variables)
    stored["sums"] = add_sum(pool, "sums", ("sum", "a"), tiny_variables)
    for name in ("first", "second"):
        stored[name] = add_packed(pool, name, tiny_variables)
    return pool, stored


def same_models(pool: Pool, stored: dict) -> None:
    for one in (pool, Pool.open(pool.folder)):
        assert one.verify() == [] and set(one.tasks) == set(stored)
        for name, variables in stored.items():
            chex.assert_trees_all_equal(one.effective(name), variables)


def test_a_copy_takes_along_what_it_is_restored_from(full, make):
    pool, stored = full
    files = file_hashes(pool.folder)
    to = make("to")
    assert pool.copy("sums", to, "copied").name == "copied@1"
    wanted = {name: stored[name] for name in ("sum", "a", "b", "c")}
    same_models(to, {"copied": stored["sums"], **wanted})
    packed = make("packed")
    pool.copy("second", packed)
    same_models(packed, {name: stored[name] for name in ("first", "second")})
    assert file_hashes(pool.folder) == files


def test_a_copy_finds_the_very_versions_under_whatever_name(full, make, tiny_variables, moved):
    pool, stored = full
    to = make("to")
    pool.copy("c", to, "renamed")  # with all rows its own there: other files, the same model
    pool.copy("sum", to)
    assert set(to.tasks) == {"renamed", "b", "sum"}
    assert to.version("sum").uses == (to.version("b").id, to.version("renamed").id)
    chex.assert_trees_all_equal(to.effective("sum"), stored["sum"])
    pool.copy("sum", pool, "again")
    same_models(pool, {**stored, "again": stored["sum"]})


def test_a_copy_that_would_need_a_taken_name_is_refused_and_nothing_is_copied(
    full, make, tiny_variables, moved
):
    pool, stored = full
    to = make("to")
    add_from(to, "c", "pretrained", tiny_variables, moved, 7)
    index = (to.folder / "index.json").read_bytes()
    with pytest.raises(
        CwpsError, match=r"to: sum@1 needs c@1 as a whole, and 'c' is another model there; co"
    ):
        pool.copy("sum", to)
    with pytest.raises(CwpsError, match=r"needs a@1 as a whole, and 'a' is another model there"):
        pool.copy("sums", make("third"), "a")
    assert (to.folder / "index.json").read_bytes() == index and to.tasks == ("c",)
    pool.copy("c", to, "c_of_pool")
    pool.copy("sum", to)
    chex.assert_trees_all_equal(to.effective("sum"), stored["sum"])


def test_pools_are_merged_whole(full, make, tiny_variables, moved):
    pool, stored = full
    add_from(pool, "a", "c", tiny_variables, moved, 11)  # a@2; a@1 has rows that others borrow
    head = Stored({"params": {"head": tiny_variables["params"]["head"]}})
    pool.add_stored("a+probe", methods.resolve("probe"), head, {}, compared=True)
    files = file_hashes(pool.folder)
    to = make("to")
    mine = add_from(to, "mine", "pretrained", tiny_variables, moved, 12)
    merged = to.merge(pool)
    assert {*merged} == {one.name for one in pool.index.versions} >= {"a@1", "a@2", "a+probe@1"}
    now = {**stored, "a": pool.effective("a"), "mine": mine}
    same_models(to, now)
    chex.assert_trees_all_equal(to.effective("a@1"), stored["a"])
    channels = [name for name in pool.tasks if pool.shares_channels(name)]
    assert {name: to.count(name) for name in channels} == {name: pool.count(name) for name in channels}
    assert {name: to.relation(name) for name in channels} == {name: pool.relation(name) for name in channels}
    assert file_hashes(pool.folder) == files
    index = (to.folder / "index.json").read_bytes()
    assert to.merge(Pool.open(pool.folder)) == () == to.merge(to)
    assert (to.folder / "index.json").read_bytes() == index


def test_a_merge_whatever_the_numbers(full, make):
    """A version that is stored anew has a larger number than those that are restored from it."""
    pool, stored = full
    pool.remove("sums")
    pool.remove("a", rehome=True)
    assert pool.version("c").id > pool.version("sum").id
    to = make("to")
    to.merge(pool)
    same_models(to, {name: stored[name] for name in ("b", "c", "sum", "first", "second")})


def test_taken_names_are_all_told_and_nothing_is_merged(full, make, tiny_variables, moved):
    pool, _ = full
    to = make("to")
    pool.copy("b", to)  # the very model: not taken, whoever stores its rows
    for seed, name in enumerate(("a", "second", "other")):
        add_from(to, name, "pretrained", tiny_variables, moved, 20 + seed)
    files = file_hashes(to.folder)
    with pytest.raises(CwpsError, match=r"to: a, second are in this pool already, .*nothing was merged"):
        to.merge(pool)
    assert file_hashes(to.folder) == files
    to.rename("a", "other_a")
    to.rename("second", "other_second")
    to.merge(pool)
    assert set(to.tasks) == {*pool.tasks, "other", "other_a", "other_second"} and to.verify() == []


def test_a_damaged_tree_leaves_the_other_pool_as_it_was(full, make):
    pool, _ = full
    to = make("to")
    for file in (pool.folder / "tasks" / "c@1" / "own").rglob("0"):
        file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1]))
    for attempt in (
        lambda: to.merge(Pool.open(pool.folder)),
        lambda: Pool.open(pool.folder).copy("sums", to),
    ):
        with pytest.raises(CwpsError, match="damaged"):
            attempt()
        assert to.tasks == () and Pool.open(to.folder).tasks == ()


def test_pools_of_other_models_are_not_merged(full, tmp_path, tiny_variables, tiny_layout, moved):
    other = {**tiny_variables, "params": moved(tiny_variables["params"], 0.1, 1)}
    to = Pool.create(tmp_path / "other", other, tiny_layout, backbone="tiny")
    with pytest.raises(CwpsError, match="other: its pre-trained model is not that of .*pool"):
        to.merge(full[0])
