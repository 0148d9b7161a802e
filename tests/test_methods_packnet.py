"""PackNet: every weight has one owner, and no owned weight ever moves."""

import dataclasses

import chex
import numpy as np
import pytest
from methods_shared import CONFIG, files_hash, task, tiny

import cwps_jax as cwps
from cwps_jax.core.trees import flatten
from cwps_jax.methods import PackNet

FREE, PRUNED = 0.6, 0.5
# The config's optimizer would move what it is not held from.
MOVING = dataclasses.replace(CONFIG, weight_decay=0.1, momentum=0.9, learning_rate=0.1)


def learn(pool, name, method=PackNet(FREE, PRUNED, learning_rate=0.1), *, turned=False):
    where, config = tiny(), dataclasses.replace(MOVING, method=method)
    return cwps.learn_task(pool, name, where.model, task(turned=turned), config=config, trainer=where.trainer)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A pool of three tasks, and each task's leaves right after it was learned."""
    pool = tiny().new_pool(tmp_path_factory.mktemp("packnet") / "pool")
    before = files_hash(pool.folder / "pretrained")
    learned = [learn(pool, name, turned=name == "two") for name in ("one", "two", "three")]
    assert files_hash(pool.folder / "pretrained") == before
    return pool, learned


def kernels_of(learned):
    leaves = flatten(learned.variables["params"])
    return {layer.path: leaves[layer.path] for layer in tiny().layout.layers}


def test_an_earlier_task_is_the_same_to_the_bit_after_later_ones(three):
    pool, learned = three
    for one in learned:
        chex.assert_trees_all_equal(cwps.Pool.open(pool.folder).effective(one.name), one.variables)
        chex.assert_trees_all_equal(pool.effective(one.name), one.variables)


def test_a_later_network_holds_every_weight_of_earlier_owners_and_adds_its_own(three):
    _, learned = three
    for path, start in flatten(tiny().variables["params"]).items():
        if path not in kernels_of(learned[0]):
            continue
        threshold = np.sort(np.abs(start).ravel())[round(FREE * start.size)]
        earlier, free = np.where(np.abs(start) >= threshold, start, 0), round(FREE * start.size)
        assert np.count_nonzero(earlier) == start.size - free
        for one in learned:
            kernel = kernels_of(one)[path]
            taken = earlier != 0
            np.testing.assert_array_equal(kernel[taken], earlier[taken])
            # Its own are where nothing was, and as many as its pruning leaves.
            owned = free - round(PRUNED * free)
            assert np.count_nonzero(kernel[~taken]) == owned
            earlier, free = kernel, free - owned


def test_each_task_stores_only_weights_of_its_own(three):
    pool, learned = three
    free = {path: round(FREE * kernel.size) for path, kernel in kernels_of(learned[0]).items()}
    for one in learned:
        owned = {path: left - round(PRUNED * left) for path, left in free.items()}
        assert pool.count(one.name).active == sum(owned.values())
        assert pool.count(one.name).private == 0
        free = {path: left - owned[path] for path, left in free.items()}
    assert pool.version("three").uses == (pool.version("one").id, pool.version("two").id)


def test_a_task_trains_the_weights_that_it_keeps_and_the_rest_of_the_model_stands(three):
    _, learned = three
    start = flatten({key: tree for key, tree in tiny().variables.items()})
    for one in learned:
        leaves = flatten(one.variables)
        for path in leaves.keys() - {f"params/{kernel}" for kernel in kernels_of(one)}:
            moved = bool(np.any(leaves[path] != start[path]))
            assert moved == path.startswith("params/head"), path


def test_a_task_that_later_ones_build_on_cannot_be_removed(three):
    pool, _ = three
    with pytest.raises(cwps.CwpsError, match=r"one@1 cannot be removed: two@1, three@1 are restored from it"):
        pool.remove("one")


def test_where_nothing_is_free_any_more_one_line_says_so_and_nothing_is_stored(tmp_path):
    pool = tiny().new_pool(tmp_path / "pool")
    learn(pool, "all", PackNet(FREE, prune_share=0.0))
    before = files_hash(pool.folder)
    with pytest.raises(
        cwps.CwpsError, match=r"^packnet: no weight .* is free any longer; begin another pool$"
    ):
        learn(pool, "none")
    assert files_hash(pool.folder) == before
    assert pool.tasks == ("all",) == cwps.Pool.open(pool.folder).tasks


def test_tasks_of_two_pools_are_restored_beside_each_other_and_no_further_one_is_learned(three, tmp_path):
    pool, learned = three
    other = tiny().new_pool(tmp_path / "other")
    alone = learn(other, "alone")
    other.merge(pool)
    for one in (*learned, alone):
        chex.assert_trees_all_equal(cwps.Pool.open(other.folder).effective(one.name), one.variables)
    before = files_hash(other.folder)
    with pytest.raises(cwps.CwpsError, match="or it came from another pool and was learned beside others"):
        learn(other, "further")
    assert files_hash(other.folder) == before


@pytest.mark.parametrize("share", [0.3, 0.62, 0.9])
def test_a_task_that_would_free_another_share_of_the_pretrained_weights_is_refused(three, share):
    pool, _ = three
    before = files_hash(pool.folder)
    with pytest.raises(
        cwps.CwpsError, match=rf"^packnet: config.packnet.free_share = {share} .* one@1 was learned"
    ):
        learn(pool, "other", PackNet(free_share=share))
    assert files_hash(pool.folder) == before


def test_a_task_may_prune_another_share_than_those_before_it(tmp_path):
    pool = tiny().new_pool(tmp_path / "pool")
    first = learn(pool, "first", PackNet(prune_share=0.9))
    second = learn(pool, "second", PackNet(prune_share=0.2))
    for one in (first, second):
        chex.assert_trees_all_equal(cwps.Pool.open(pool.folder).effective(one.name), one.variables)
    kernels, later = kernels_of(first), kernels_of(second)
    assert all(np.all(later[path][kernels[path] != 0] == kernels[path][kernels[path] != 0]) for path in later)
