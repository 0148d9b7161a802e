"""A task in few bits: what is evaluated is what is stored, and all that moves it keeps its bits."""

import dataclasses
import json
import math
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest
from methods_shared import CONFIG, LEARNED, Setting, files_hash, logits_hash, setting_of, task, tiny

import cwps_jax as cwps
from cwps_jax.core import budgets
from cwps_jax.core.coding import Codes
from cwps_jax.core.taps import frequencies, has_taps
from cwps_jax.core.trees import flatten
from cwps_jax.errors import CwpsError
from cwps_jax.methods.method import Stored
from cwps_jax.store import Pool
from cwps_jax.store.coded import DecodedOwn, coded
from cwps_jax.train.step import at_the_end

FLOAT32 = 4
LEAST = {"row_bits": 0, "byte_budget": 0.12}  # entropy-coded


def learn(pool: cwps.Pool, where: Setting, name: str, **options) -> cwps.LearnedTask:
    config = dataclasses.replace(CONFIG, **options)
    data = task(where.size, turned=len(pool) % 2 == 0)
    return cwps.learn_task(pool, name, where.model, data, config=config, trainer=where.trainer)


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> cwps.Pool:
    """Five tasks that share channels, in several numbers of bits, each borrowing of those before."""
    where = tiny()
    pool = where.new_pool(tmp_path_factory.mktemp("bits") / "pool")
    for name, bits in {"two": 2, "three": 3, "eight": 8, "whole": 32, "one": 1}.items():
        learn(pool, where, name, row_bits=bits, method=cwps.methods.Cwps(search_distance="l2"))
    learn(pool, where, "tuned", row_bits=2, method="finetune")
    for name in ("least", "lesser"):
        learn(pool, where, name, **LEAST, method=cwps.methods.Cwps(search_distance="l2"))
    return pool


def stored_rows(pool: cwps.Pool, name: str):
    version = pool.version(name)
    return pool._trees._load(version, "rows", version.rows_sha256)


@pytest.mark.parametrize("name", ["two", "three", "eight", "one", "tuned"])
def test_what_is_stored_is_codes_of_the_change_since_pretraining(pool, name):
    bits = {"two": 2, "three": 3, "eight": 8, "one": 1, "tuned": 2}[name]
    leaves, start = flatten(pool.effective(name)["params"]), flatten(pool.effective("pretrained")["params"])
    rows, gates = stored_rows(pool, name), flatten(pool.gates(name))
    assert sum(map(len, (codes.steps for codes in rows.values()))) > 0
    for layer in pool.layout.layers:
        opened = np.flatnonzero(gates[layer.path])
        for leaf in layer.leaves:
            codes = rows[leaf]
            assert isinstance(codes, Codes) and (codes.bits, len(codes.steps)) == (bits, len(opened))
            change = (leaves[leaf] - start[leaf]).reshape(-1, layer.channels)[:, opened]
            # Each channel's change is one step times odd numbers, and half of it.
            levels = change / np.where(codes.steps > 0, codes.steps, 1).astype(np.float32)
            if bits < 8:
                np.testing.assert_allclose(levels % 1, 0.5, atol=1e-2)
                assert np.abs(levels).max(initial=0) <= 2 ** (bits - 1) - 0.4
    norms = pool._trees.own(pool.version(name)).leaves
    assert norms["params/norm/scale"].bits == 8 and norms["other/batch_stats/norm/mean"].bits == 16
    # A head is new: not a change of the pre-trained model's, even where that has as many classes.
    head, kernel = norms["params/head/kernel"], leaves["head/kernel"]
    assert (head.bits, len(head.steps)) == (8, kernel.shape[-1]) and norms["params/head/bias"].bits == 8
    chex.assert_trees_all_equal(head.rows(slice(None)).T, kernel)
    assert kernel.shape == start["head/kernel"].shape


def test_a_new_process_has_the_same_logits_to_the_bit(pool):
    where = tiny()
    program = (
        "import json, sys, cwps_jax as cwps\n"
        "from methods_shared import TinyModel, logits_hash\n"
        "pool = cwps.Pool.open(sys.argv[1])\n"
        "print(json.dumps({name: logits_hash(TinyModel(), pool.effective(name), 8) for name in pool.tasks}))"
    )
    out = subprocess.run(
        [sys.executable, "-c", program, str(pool.folder)],
        capture_output=True,
        text=True,
        check=True,
        cwd="tests",
    )
    here = {name: logits_hash(where.model, pool.effective(name), where.size) for name in pool.tasks}
    assert json.loads(out.stdout) == here


def test_a_variance_near_zero_does_not_become_negative(tiny_layout, tiny_variables):
    """16 bits of the largest change are coarser than a small variance, whose square root is taken."""
    rng = np.random.default_rng(0)
    leaf = lambda low, high: np.exp(rng.uniform(np.log(low), np.log(high), 6)).astype(np.float32)
    before = flatten(tiny_variables)
    path = "batch_stats/norm/var"
    for _ in range(200):
        before = {**before, path: leaf(1e-5, 2)}
        variance = np.append(leaf(1e-6, 1e-4)[:5], np.float32(20))
        stored = Stored({"params": {}, "other": {"batch_stats": {"norm": {"var": variance}}}})
        own = flatten(coded(tiny_layout, stored, 2, {}, before).own)
        decoded = DecodedOwn(own, lambda before=before: before)[f"other/{path}"]
        step = float(own[f"other/{path}"].steps[0])
        assert (decoded >= 0).all()
        np.testing.assert_allclose(decoded, variance, rtol=0.005, atol=1.01 * step)


def test_a_task_whose_stored_model_answers_with_no_numbers_is_not_stored(tmp_path, monkeypatch):
    where = tiny()
    pool = where.new_pool(tmp_path / "pool")

    def negative(*given):
        own = dict(decoded(*given))
        own["batch_stats"] = jax.tree.map(lambda leaf: -np.abs(leaf) - 1, own["batch_stats"])
        return own

    decoded = Pool.restored
    monkeypatch.setattr(Pool, "restored", negative)
    with pytest.raises(
        FloatingPointError, match=r"not a number for 16 of 16 validation items.*config.row_bits"
    ):
        learn(pool, where, "a", row_bits=2)
    assert pool.tasks == () and pool.verify() == []


def test_what_was_learned_is_what_is_read_again_and_no_earlier_task_changes(tmp_path):
    where = tiny()
    pool = where.new_pool(tmp_path / "pool")
    first = learn(pool, where, "first", row_bits=2)
    before = {"first": files_hash(pool.folder / "tasks" / "first@1")}
    second = learn(pool, where, "second", row_bits=3)
    opened = cwps.Pool.open(pool.folder)
    chex.assert_trees_all_equal(opened.effective("first"), first.variables)
    chex.assert_trees_all_equal(opened.effective("second"), second.variables)
    assert files_hash(pool.folder / "tasks" / "first@1") == before["first"]
    assert opened.verify() == []


def test_bytes_are_those_of_the_files_and_few_bits_cost_less(pool):
    for name in pool.tasks:
        version, payload, head = pool.version(name), 0, 0
        for tree in ("own", "rows"):
            leaves = json.loads((pool.folder / "tasks" / version.folder / tree / "leaves.json").read_text())
            for path, leaf in leaves.items():
                parts = [part for part in leaf.values() if isinstance(part, dict)] or [leaf]
                itemsize = lambda part: 2 if part["dtype"] == "bfloat16" else np.dtype(part["dtype"]).itemsize
                stored = sum(itemsize(part) * math.prod(part["shape"]) for part in parts)
                payload += stored
                head += stored * path.startswith("params/head/")
        count = pool.count(name)
        assert version.bytes == payload == count.bits // 8
        numbers = sum(leaf.size for leaf in flatten(pool.effective(name)["params"]["head"]).values())
        assert head == FLOAT32 * numbers if name == "whole" else numbers < head < FLOAT32 / 2 * numbers
        whole = FLOAT32 * pool.layout.backbone_parameters
        assert count.byte_ratio == pytest.approx((payload - head) / whole)
    assert pool.count("tuned").ratio == 1.0
    assert pool.count("tuned").byte_ratio < 0.25 < pool.count("whole").byte_ratio


def test_rows_are_taken_as_they_would_all_be_decoded(pool):
    number = pool.version("three").id
    for rows in pool._trees.rows(number).values():
        every = np.asarray(rows)
        assert rows.shape == every.shape and len(rows) == len(every)
        if len(every) > 1:
            np.testing.assert_array_equal(rows[[len(every) - 1, 0]], every[[-1, 0]])


def test_a_search_finds_a_stored_task_channel_by_channel(pool):
    for name in ("two", "eight", "one", "least", "lesser"):
        child = pool.effective(name)["params"]
        parent, _ = cwps.composite_parent(child, pool, cwps.Search("l2"))
        chex.assert_trees_all_equal(parent, {layer: child[layer] for layer in parent})


def test_rows_that_move_keep_their_bits_and_models_stay_the_same(pool, tmp_path):
    """Copied, what a task borrows becomes its own: codes where all of its rows are, else floats."""
    other = tiny().new_pool(tmp_path / "other")
    wanted, codes = {name: pool.effective(name) for name in pool.tasks}, 0
    for name in reversed(pool.tasks):
        pool.copy(name, other)
    copied = cwps.Pool.open(other.folder)
    while len(copied):
        assert copied.verify() == []
        for name in copied.tasks:
            chex.assert_trees_all_equal(copied.effective(name), wanted[name])
            codes += sum(isinstance(leaf, Codes) for leaf in stored_rows(copied, name).values())
        copied.remove(copied.tasks[0], rehome=True)
    assert codes > 10


@pytest.mark.parametrize("name", [name for name in LEARNED if name not in ("atlas",)])
def test_every_method_is_stored_in_few_bits_and_read_as_it_was_measured(name, tmp_path):
    where = setting_of(name)
    pool = where.new_pool(tmp_path / "pool")
    learned = learn(pool, where, name, row_bits=4, method=LEARNED[name])
    opened = cwps.Pool.open(pool.folder)
    chex.assert_trees_all_equal(opened.effective(name), learned.variables)
    floats = [
        leaf.dtype
        for path, leaf in opened._trees.own(opened.version(name)).leaves.items()
        if not isinstance(leaf, Codes) and leaf.size and leaf.ndim and leaf.dtype == np.float32
    ]
    assert floats == []


@pytest.mark.parametrize("bits", [1, 3])
@pytest.mark.parametrize("name", ["finetune", "channels", "layers", "taps"])
def test_the_last_epochs_see_the_network_that_is_stored(name, bits, tmp_path):
    """Norms apart, whose 8 bits they do not see; and the step sizes' sums, which are in another order."""
    where = tiny()
    config = dataclasses.replace(CONFIG, method=LEARNED[name], row_bits=bits)
    pool = where.new_pool(tmp_path / "pool")
    found = where.trainer.train(where.variables, task(where.size).train, config, pool.pooled())
    stored = flatten(
        pool.restored(found.method, pool.coded(found.method.store(found.finished), bits))["params"]
    )
    stage, moment = found.method.stages(where.trainer.network, config)[-1], found.finished.moment
    own, frozen = jax.device_put((moment.own, moment.frozen))
    seen = flatten(at_the_end(stage, stage.seen(own, frozen), frozen).params)
    exact = flatten(at_the_end(stage, own, frozen).params)
    opened = flatten(found.finished.gates)
    for layer in where.layout.layers:
        leaf = layer.leaves[0]
        same = np.isclose(np.asarray(seen[leaf]), stored[leaf], rtol=1e-2, atol=1e-4)
        assert same.mean() > 0.98, leaf
        if not opened or np.any(opened[layer.path]):
            moved = np.abs(np.asarray(seen[leaf]) - np.asarray(exact[leaf])) > 1e-4
            assert moved.mean() > 0.1 or name == "taps", leaf


def test_the_exact_weights_go_on_moving_by_less_than_a_level():
    """Steps that are smaller than a level add up: the own tree is not the rounded one."""
    where = tiny()
    config = dataclasses.replace(CONFIG, method="finetune", row_bits=2, learning_rate=1e-4)
    found = where.trainer.train(where.variables, task(where.size).train, config)
    change = flatten(found.finished.moment.own["params"])["conv2/kernel"]
    change = (change - flatten(where.variables["params"])["conv2/kernel"]).reshape(-1, 8)
    assert len(np.unique(np.abs(change[:, 0]))) > 10


@pytest.mark.parametrize(("bits", "granularity"), [(32, "channel"), (2, "channel"), (4, "layer")])
def test_a_budget_in_bytes_is_kept_and_used(bits, granularity, tmp_path):
    where = tiny()
    pool = where.new_pool(tmp_path / "pool")
    method = cwps.methods.Cwps(lambda_=0.0, granularity=granularity)
    data_prices = budgets.byte_prices(pool.layout, bits, (6, 6))
    most = (
        data_prices.fixed
        + 0.6
        * sum(
            price * layer.channels
            for price, layer in zip(data_prices.channel, pool.layout.layers, strict=True)
        )
    ) / data_prices.whole
    budget = round(min(most, 1.0), 3)
    learned = learn(pool, where, "a", row_bits=bits, byte_budget=budget, budget=1.0, method=method)
    found = pool.count(learned.name).byte_ratio
    assert found <= budget
    if granularity == "channel":
        slack = max(data_prices.channel) / data_prices.whole
        opened = sum(gate.sum() for gate in flatten(pool.gates("a")).values())
        wanted = sum(layer.channels for layer in pool.layout.layers)
        assert found > budget - 3 * slack or opened == wanted


def test_prices_in_bytes_are_what_is_stored(pool):
    for name, bits in {"two": 2, "three": 3, "eight": 8, "whole": 32}.items():
        prices = budgets.byte_prices(pool.layout, bits, (6, 6))
        expected = float(budgets.params_ratio(pool.gates(name), pool.layout, prices))
        found = pool.count(name).byte_ratio
        # A layer that is all open or all closed has one byte for its mask.
        assert found <= expected + 1e-6
        assert found == pytest.approx(expected, abs=4 / prices.whole)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"row_bits": 5}, r"config.row_bits = 5: choose one of 32, 16, 8, 4, 3, 2, 1 .* or 0"),
        ({"row_bits": 0}, r"config.row_bits = 0: needs config.byte_budget"),
        ({"byte_budget": 0.5, "budget": 0.5}, r"replaces config.budget \(0.5"),
        ({"byte_budget": -0.1, "budget": 1.0}, r"config.byte_budget = -0.1: must be in \[0, 1\]"),
    ],
)
def test_bits_and_budgets_that_cannot_be_are_refused(options, what):
    with pytest.raises(CwpsError, match=what):
        dataclasses.replace(CONFIG, **options)


def test_a_budget_below_what_is_stored_in_any_case_names_that(tmp_path):
    where = tiny()
    pool = where.new_pool(tmp_path / "pool")
    least = budgets.byte_prices(pool.layout, 2, (6, 6))
    with pytest.raises(CwpsError, match=rf"masks and owners alone cost {least.fixed / least.whole:.4f}"):
        learn(pool, where, "a", row_bits=2, byte_budget=0.01, budget=1.0)
    assert pool.tasks == ()


@pytest.mark.parametrize("name", ["finetune", "channels", "layers", "taps"])
@pytest.mark.parametrize("budget", [0.1, 0.2])
def test_bits_that_a_byte_budget_sets_are_within_it_and_learned(name, budget, tmp_path):
    where = tiny()
    pool = where.new_pool(tmp_path / "pool")
    method, options = LEARNED[name], {"row_bits": 0, "byte_budget": budget}
    config = dataclasses.replace(CONFIG, method=method, **options)
    data = task(where.size)
    found = where.trainer.train(where.variables, data.train, config, pool.pooled())
    stored = pool.coded(found.method.store(found.finished), 0, budget, where.trainer.network.folding)
    learned = learn(pool, where, name, method=method, **options)
    count = pool.count(learned.name)
    assert count.byte_ratio <= budget
    if name != "taps":  # its step was fitted to layers too that were closed at the end
        assert count.byte_ratio > 0.85 * budget
    assert cwps.Pool.open(pool.folder).verify() == []
    chex.assert_trees_all_equal(cwps.Pool.open(pool.folder).effective(name), learned.variables)
    # The last epochs saw what is stored, but for a dead zone that grew where the changes did.
    stage, moment = found.method.stages(where.trainer.network, config)[-1], found.finished.moment
    own, frozen = jax.device_put((moment.own, moment.frozen))
    seen = flatten(at_the_end(stage, stage.seen(own, frozen), frozen).params)
    given = flatten(pool.restored(found.method, stored)["params"])
    start = flatten(where.variables["params"])
    same = []
    for layer in where.layout.layers:
        for leaf in layer.leaves:
            changes = [np.asarray(tree[leaf] - start[leaf]) for tree in (seen, given)]
            coded = [frequencies(change) if has_taps(layer, leaf) else change for change in changes]
            same.append(np.isclose(*coded, rtol=1e-2, atol=1e-4).ravel())
    assert np.concatenate(same).mean() > (0.9 if budget < 0.2 else 0.75)  # a finer step is missed more often


def test_a_smaller_budget_has_more_zeros_and_a_smaller_share_of_bits(tmp_path):
    where = tiny()
    pool = where.new_pool(tmp_path / "pool")
    zeros = []
    for name, budget in {"much": 0.2, "little": 0.1}.items():
        learn(pool, where, name, method="finetune", row_bits=0, byte_budget=budget)
        levels = [codes.levels() for codes in stored_rows(pool, name).values()]
        zeros.append(np.mean(np.concatenate([level.ravel() for level in levels]) == 0))
        assert len({float(codes.steps[0]) for codes in stored_rows(pool, name).values()}) == 1
    assert zeros[0] < zeros[1]


def test_few_bits_have_no_sketch_on_the_disk_and_are_searched_all_the_same(pool):
    for name in pool.tasks:
        assert bool(pool.version(name).sketch_sha256) == (name in ("eight", "whole"))


@pytest.mark.parametrize("name", ["finetune", "channels", "taps"])
def test_a_byte_budget_that_leaves_nothing_for_channels_names_what_it_takes(name, tmp_path):
    where = tiny()
    pool = where.new_pool(tmp_path / "pool")
    with pytest.raises(CwpsError, match=r"byte_budget 0.01: norms, .* alone cost 0\.\d+"):
        learn(pool, where, "a", method=LEARNED[name], row_bits=0, byte_budget=0.01)
    with pytest.raises(CwpsError, match="take a larger config.byte_budget"):
        whole = learn(pool, where, "b", method="finetune", row_bits=0, byte_budget=0.036)
        raise AssertionError(pool.count(whole.name).byte_ratio)


def test_methods_without_channels_have_eight_bits_where_the_budget_sets_them(tmp_path):
    where = setting_of("lora")
    pool = where.new_pool(tmp_path / "pool")
    learned = learn(pool, where, "lora", method=LEARNED["lora"], row_bits=0, byte_budget=0.5)
    own = pool._trees.own(pool.version("lora")).leaves
    assert {leaf.bits for leaf in own.values() if isinstance(leaf, Codes)} == {8, 16}
    chex.assert_trees_all_equal(cwps.Pool.open(pool.folder).effective("lora"), learned.variables)


def test_with_all_channels_open_cwps_learns_what_coded_finetuning_does(tmp_path):
    """Up to rounding: both train every weight with one schedule, and store its change in the same code.

    Norms apart, whose statistics cwps estimates again: they are folded into what is compared here.
    """
    where = tiny()
    learned = {}
    for method in ("cwps", "finetune"):
        pool = where.new_pool(tmp_path / method)
        options = {"row_bits": 0, "byte_budget": 0.2, "budget": 1.0}
        learned[method] = learn(pool, where, "a", method=method, **options)
    assert learned["cwps"].params_ratio == learned["finetune"].params_ratio
    one, other = (flatten(learned[method].variables["params"]) for method in ("cwps", "finetune"))
    start = flatten(where.variables["params"])
    for path in one.keys() - {"norm/scale", "norm/bias"}:
        leaf = one[path]
        moved = np.abs(leaf - start[path]).max() if path in start and start[path].shape == leaf.shape else 1
        np.testing.assert_allclose(leaf, other[path], atol=0.05 * moved + 1e-6, err_msg=path)
