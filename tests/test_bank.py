"""Many tasks from one backbone: the pool's own bits, one copy of each row, and memory that comes back."""

import dataclasses
import gc
import importlib
import pathlib
import sys
import threading

import chex
import jax
import numpy as np
import pytest
from methods_shared import CONFIG, images_of, task, tiny

import cwps_jax as cwps
from cwps_jax import models
from cwps_jax.bank import Bank, kinds
from cwps_jax.bank.compiled import holding
from cwps_jax.core.entropy import entropy_coded
from cwps_jax.core.taps import taps
from cwps_jax.errors import CwpsError

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "benchmarks"))
synthetic = importlib.import_module("synthetic")

BITS = {"two": 2, "eight": 8, "whole": 32, "one": 1}
SHARING = cwps.methods.Cwps(search_distance="l2")


def learn(pool, name: str, relearn: bool = False, **options) -> None:
    where = tiny()
    data = task(where.size, turned=len(pool) % 2 == 0)
    config = dataclasses.replace(CONFIG, **{"method": SHARING, **options})
    cwps.learn_task(pool, name, where.model, data, config=config, trainer=where.trainer, relearn=relearn)


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> cwps.Pool:
    """Tasks that borrow of those before, in all numbers of bits."""
    pool = tiny().new_pool(tmp_path_factory.mktemp("bank") / "pool")
    for name, bits in BITS.items():
        learn(pool, name, row_bits=bits)
    learn(pool, "tuned", row_bits=2, method="finetune")
    learn(pool, "least", row_bits=0, byte_budget=0.12)
    return pool


def bank_of(pool, *args, **options) -> Bank:
    return Bank(pool, *args, model=tiny().model, **options)


def test_what_is_decoded_on_the_device_is_what_the_pool_gives_to_the_bit(pool):
    bank = bank_of(pool)
    assert bank.tasks == pool.tasks
    for name in pool.tasks:
        entry = bank._entries[name]
        assert entry.loaded
        expected = jax.tree.map(np.asarray, pool.effective(name))
        for way, of in ((bank._ways.merge, entry), (bank._ways.swap, entry.loaded)):
            chex.assert_trees_all_equal(jax.device_get(made(bank, lambda way=way, of=of: way(of))), expected)
    held = {kind.rstrip("0123456789_") for one in bank._ways.resident.tables.arrays.values() for kind in one}
    assert {"halves", "levels", "taps"} <= held


def test_frequencies_lie_in_the_fewest_bits_and_come_back_to_the_bit():
    draw, step = np.random.default_rng(0), np.float32(0.013)
    largest = [(0, 0), (1, 0), (7, 0), (5, 1), (2, 7), (90, 3), (3, 100), (1, 1)]
    levels = np.zeros((len(largest), 9, 5), np.int16)
    for row, (smooth, other) in zip(levels, largest, strict=True):
        for numbers, most in (([0, 1, 3], smooth), ([2, 4, 5, 6, 7, 8], other)):
            row[numbers] = draw.integers(-most, most + 1, (len(numbers), 5))
            row[numbers[0], 0] = most
    flat = levels.reshape(len(largest), 45)
    codes = entropy_coded(taps(flat, 1) * step, step, (len(largest), 9, 5), of_taps=True)
    np.testing.assert_array_equal(codes.levels(), flat)
    found, numbers, places = kinds.by_kind(codes)
    names = ["start", "taps2_0", "taps4_0", "taps4_2", "taps4_4", "taps8_4", "taps8_8", "taps4_2"]
    assert [kinds.KINDS[number] for number in numbers] == names
    start, expected = draw.normal(size=(1, 45)).astype(np.float32), codes.rows(slice(None))
    decode = jax.jit(kinds.rows_of, static_argnums=0)
    for row, (kind, place) in enumerate(zip(names, places, strict=True)):
        if kind != kinds.START:
            parts = {name: part[place : place + 1] for name, part in found[kind].items()}
            np.testing.assert_array_equal(decode(kind, parts, start, np.int32(0)), start + expected[row])


def made(bank: Bank, call):
    """Returns what a way of a bank gives, with the lock held and its programs compiled."""
    return holding(bank._lock, call)


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return images_of(count, seed, tiny().size)


def expected(pool, name: str, images: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(tiny().model.apply)(pool.effective(name), images))


def live_bytes() -> int:
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())


def test_every_way_answers_as_the_pool(pool):
    bank, images = bank_of(pool), pictures(9)
    names = [pool.tasks[number % 5] for number in range(9)]
    merged, swapped = (bank.answer(images, names, way) for way in ("merged", "swapped"))
    for number, name in enumerate(names):
        np.testing.assert_array_equal(merged[number], swapped[number])
        right = expected(pool, name, images[number : number + 1])[0]
        np.testing.assert_allclose(merged[number], right, atol=1e-5)
    mixed = bank.answer(images, names, "mixed")
    largest = max(np.abs(one).max() for one in merged)
    assert max(np.abs(one - other).max() for one, other in zip(mixed, merged, strict=True)) <= 1e-5 * largest
    together = bank.answer(images, "two")
    np.testing.assert_allclose(np.stack(together), expected(pool, "two", images), atol=1e-5)


def test_rows_lie_once_on_the_device_in_the_bits_in_which_they_are_stored(pool):
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(pool.effective("two")))
    alone = bank_of(pool, ["two"]).resident["device"]
    both = bank_of(pool, ["two", "one"]).resident["device"]
    assert alone < 1.5 * whole
    assert both - alone < 0.5 * whole


def test_switching_adding_and_dropping_compiles_nothing(pool):
    bank, images = bank_of(pool), pictures(2)
    draws = np.random.default_rng(0)
    names = ["two", "eight", "one", "whole"]
    for first in names:
        for second in names:
            bank.answer(images, [first, second], "mixed")
    for way in ("merged", "swapped"):
        for name in pool.tasks:
            bank.answer(images, name, way)
    for name in ("one", "least"):  # which are stored in different forms
        bank.drop(name)
        bank.add(name)
    with synthetic.CountCompilations() as counted:
        for _ in range(100):
            name = str(draws.choice(pool.tasks))
            bank.answer(images, name, str(draws.choice(["merged", "swapped"])))
            bank.answer(images, list(draws.choice(names, 2)), "mixed")
            if draws.random() < 0.1 and name not in ("tuned", "whole"):  # of most of all bytes
                bank.drop(name)
                bank.add(name)
    assert counted.names == []


def test_memory_is_freed_and_counted(pool):
    before = live_bytes()
    bank = bank_of(pool)
    bank.answer(pictures(2), "two", "merged")
    bank.answer(pictures(2), "one", "swapped")
    full = bank.resident["device"]
    assert live_bytes() - before == full
    for name in pool.tasks[1:]:
        bank.drop(name)
    assert bank.resident["device"] < 0.7 * full
    assert live_bytes() - before == bank.resident["device"]
    np.testing.assert_allclose(
        np.stack(bank.answer(pictures(2), "two")), expected(pool, "two", pictures(2)), atol=1e-5
    )
    del bank
    assert live_bytes() == before


def test_an_owners_rows_stay_while_a_borrower_is_served(pool):
    bank = bank_of(pool)
    for name in pool.tasks[:-1]:
        bank.drop(name)
    (last,) = bank.tasks
    variables = made(bank, lambda: bank._ways.merge(bank.served(last)))
    chex.assert_trees_all_equal(jax.device_get(variables), jax.tree.map(np.asarray, pool.effective(last)))


def test_a_request_under_way_ends_with_what_it_began_with(pool):
    bank = bank_of(pool, ["two", "one"])
    with bank._leased(["two"]) as (entry,):
        bank.drop("two")
        assert bank.tasks == ("one",)
        assert entry.loaded in bank._ways.resident.loaded
        variables = made(bank, lambda: bank._ways.swap(entry.loaded))
        chex.assert_trees_all_equal(
            jax.device_get(variables), jax.tree.map(np.asarray, pool.effective("two"))
        )
        del variables
    assert entry.loaded not in bank._ways.resident.loaded
    with pytest.raises(CwpsError, match="bank.add"):
        bank.answer(pictures(1), "two")


def test_a_newer_version_replaces_what_is_served(tmp_path):
    pool = tiny().new_pool(tmp_path / "pool")
    learn(pool, "birds")
    bank = bank_of(cwps.Pool.open(pool.folder))
    first, images = bank.answer(pictures(4), "birds"), pictures(4)
    np.testing.assert_allclose(np.stack(first), expected(pool, "birds", images), atol=1e-5)
    learn(pool, "birds", relearn=True, seed=3)
    learn(pool, "cars")
    np.testing.assert_array_equal(np.stack(bank.answer(images, "birds")), np.stack(first))
    bank.refresh()
    assert bank.tasks == ("birds", "cars")
    for name in bank.tasks:
        answers = np.stack(bank.answer(images, name))
        np.testing.assert_allclose(answers, expected(pool, name, images), atol=1e-5)
    assert not np.allclose(np.stack(bank.answer(images, "birds")), np.stack(first))


@pytest.mark.parametrize("way", ["merged", "swapped"])
def test_what_the_device_has_no_room_for_waits_on_the_host_or_on_disk(pool, way):
    need = bank_of(pool, ["whole"])
    need.answer(pictures(1), "whole", way)
    limit = need.resident["device"] + 400
    names = ["two", "whole", "least", "whole"]
    for host in (0, 1):
        bank = bank_of(pool, names, device_bytes=limit, host_bytes=host)
        for name in names:
            answers = np.stack(bank.answer(pictures(2), name, way))
            np.testing.assert_allclose(answers, expected(pool, name, pictures(2)), atol=1e-5)
            assert bank.resident["device"] <= limit
        assert (bank.resident["host"] > 0) == (host == 0)
        assert (bank.resident["disk"] > 0) == (host == 1)
    with pytest.raises(CwpsError, match="give more"):
        bank_of(pool, device_bytes=1000)


def test_the_way_is_what_was_measured_to_take_least(pool):
    bank = bank_of(pool, ["two", "one"])
    seconds = {"merge": 3.0, "swap": 1.0, "forward": 10.0, "mixed": 15.0}

    class Told(dict):
        def __contains__(self, what):
            return True

        def __getitem__(self, what):
            return seconds[what[0]]

    bank._ways.costs.seconds = Told()
    entry, image = bank.served("two"), pictures(1)
    assert bank._way({entry: 1}, image) == "swapped"
    bank.answer(image, "two")
    assert bank._way({entry: 1}, image) == "merged"  # asked again: its tree is kept
    bank.answer(image, "two")
    seconds["swap"] = 0.0
    assert bank._ways.seconds({entry: 3}, image) == {"merged": 10.0, "swapped": 10.0}
    assert bank._ways.seconds({bank.served("one"): 65}, image) == {"merged": 23.0, "swapped": 20.0}
    both = {entry: 1, bank.served("one"): 1}
    assert bank._ways.seconds(both, image) == {"merged": 23.0, "swapped": 20.0, "mixed": 15.0}
    assert bank._way(both, image) == "mixed"


def test_a_mixed_batch_that_has_no_room_goes_in_parts(pool):
    names, images = ["two", "whole", "eight", "least"], pictures(4)
    right = bank_of(pool, names).answer(images, names, "mixed")
    alone = [bank_of(pool, [name]).resident["device"] for name in names]
    bank = bank_of(pool, names, device_bytes=max(alone) + 400)
    answers = bank.answer(images, names, "mixed")
    largest = max(np.abs(one).max() for one in right)
    assert max(np.abs(one - other).max() for one, other in zip(answers, right, strict=True)) <= 1e-5 * largest
    assert bank.resident["device"] <= max(alone) + 400
    with pytest.raises(CwpsError, match="give more"):
        bank_of(pool, names, device_bytes=min(alone) + 400).answer(images, names, "mixed")


class OfThisRelease(Bank):
    """Task "one" is of an earlier release, until its record is mended."""

    mended = False

    def described(self, pool, task):
        if task == "one" and not self.mended:
            raise CwpsError("one@1 was stored without what it was learned with; learn it again")
        return super().described(pool, task)


def test_a_task_that_cannot_be_served_is_left_out_and_named(pool, caplog):
    with caplog.at_level("WARNING"):
        bank = OfThisRelease(pool, model=tiny().model)
        bank.refresh()
    others = [name for name in pool.tasks if name != "one"]
    assert list(bank.tasks) == others and list(bank.left_out) == ["one"]
    assert caplog.text.count("task 'one' is left out of the bank: one@1 was stored without") == 1
    bank.answer(pictures(1), "two", "merged")
    for asked in (
        lambda: bank.answer(pictures(1), "one"),
        lambda: bank.add("one"),
        lambda: OfThisRelease(pool, ["two", "one"], model=tiny().model),
    ):
        with pytest.raises(CwpsError, match="one@1 was stored without"):
            asked()
    bank.mended = True
    bank.refresh()
    assert set(bank.tasks) == set(pool.tasks) and not bank.left_out


def test_threads_may_ask_while_others_load_and_unload(pool):
    bank, images = bank_of(pool), pictures(2)
    right = {name: expected(pool, name, images) for name in pool.tasks}
    wrong: list[str] = []

    def ask(seed: int) -> None:
        draws = np.random.default_rng(seed)
        for _ in range(20):
            name = str(draws.choice(["two", "eight", "whole"]))
            answers = np.stack(bank.answer(images, name, str(draws.choice(["merged", "swapped"]))))
            if not np.allclose(answers, right[name], atol=1e-5):
                wrong.append(name)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        bank.drop("one")
        bank.add("one")
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("way", ["", "swapped"])
def test_a_request_is_answered_while_the_programs_of_another_are_compiled(pool, way):
    begun, let_go, found = threading.Event(), threading.Event(), []

    class Waiting(type(tiny().model)):
        """Tracing it for four pictures takes as long as the test wants."""

        def __call__(self, images, *args, **options):
            if len(images) == 4:
                begun.set()
                assert let_go.wait(60)
            return super().__call__(images, *args, **options)

    bank = Bank(pool, ["two", "one"], model=Waiting())
    bank.answer(pictures(1), "two", "swapped")
    large = threading.Thread(target=lambda: found.append(bank.answer(pictures(4), "two", way)))
    large.start()
    assert begun.wait(60)
    answers = bank.answer(pictures(1), "one", "swapped")  # would wait for ever if the lock were held
    np.testing.assert_allclose(np.stack(answers), expected(pool, "one", pictures(1)), atol=1e-5)
    let_go.set()
    large.join()
    np.testing.assert_allclose(np.stack(found[0]), expected(pool, "two", pictures(4)), atol=1e-5)


def test_tasks_that_are_not_stored_as_channels_are_served_whole(tmp_path):
    pool = tiny().new_pool(tmp_path / "pool")
    learn(pool, "low", method=cwps.methods.Lora(rank=2, learning_rate=0.02), epochs=1)
    bank, images = bank_of(pool), pictures(3)
    for way in ("merged", "swapped", ""):
        answers = np.stack(bank.answer(images, "low", way))
        np.testing.assert_allclose(answers, expected(pool, "low", images), atol=1e-5)
    with pytest.raises(CwpsError, match="not stored as channels"):
        bank.answer(images, "low", "mixed")
    before = bank.resident["device"]
    bank.drop("low")
    assert bank.resident["device"] < before


def test_heads_of_several_numbers_of_classes_share_a_program(tmp_path):
    shape = (1, 16, 16, 3)
    layout = cwps.channel_layout(models.create("resnet8", 3), jax.ShapeDtypeStruct(shape, np.float32))
    init = jax.jit(models.create("resnet8", 5).init)
    widest = jax.device_get(init(jax.random.key(0), np.zeros(shape)))
    other = {"batch_stats": widest["batch_stats"]}
    gates = jax.tree.map(
        lambda scores: np.arange(scores.size).reshape(scores.shape) % 7 == 0, cwps.init_scores(layout)
    )
    cut = lambda count: {
        **widest["params"],
        "head": jax.tree.map(lambda leaf: leaf[..., :count], widest["params"]["head"]),
    }
    pool = cwps.Pool.create(tmp_path / "pool", {"params": cut(3), **other}, layout, backbone="resnet8")
    for classes in (3, 2, 5):
        pool.add(f"of{classes}", cut(classes), other, gates, {}, ("pretrained",), {})
    bank, images = Bank(pool, ["of3", "of2"]), images_of(3, 0, 16).repeat(3, axis=-1)
    bank.add("of5")  # wider than all before
    right = np.asarray(jax.jit(models.create("resnet8", 5).apply)(widest, images))
    for classes in (3, 2, 5):
        answers = np.stack(bank.answer(images, f"of{classes}", "swapped"))
        np.testing.assert_allclose(answers, right[:, :classes], atol=1e-5 * np.abs(right).max())


def test_what_cannot_be_asked_is_refused_in_one_line(pool):
    bank = bank_of(pool, ["two", "eight"])
    for asked, message in (
        (lambda: bank.answer(pictures(1), "tow"), "did you mean 'two'"),
        (lambda: bank.drop("eigt"), "did you mean 'eight'"),
        (lambda: bank.add("elephants"), "no task 'elephants'"),
        (lambda: bank.answer(pictures(2), ["two"]), "one task for each"),
        (lambda: bank.answer(pictures(1), "two", "sideways"), "merged, swapped, mixed"),
        (lambda: Bank(pool), "model of your own"),
    ):
        with pytest.raises(CwpsError, match=message) as raised:
            asked()
        assert "\n" not in str(raised.value)
