"""Several processes write one pool, and any may be killed: nothing is lost, torn or to be repaired."""

import cProfile
import dataclasses
import json
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import chex
import numpy as np
import pytest
from test_lifecycle import add_from, assert_all
from test_store import add_task, file_hashes, random_gates

import cwps_jax.store.lock
from cwps_jax import methods
from cwps_jax.core.trees import unflatten
from cwps_jax.errors import CwpsError
from cwps_jax.methods.method import Stored
from cwps_jax.store import Pool
from cwps_jax.store.lock import locked

TORTURE = pathlib.Path(__file__).parent.parent / "scripts" / "torture.py"


@pytest.fixture
def pool(tmp_path, tiny_variables, tiny_layout) -> Pool:
    return Pool.create(tmp_path / "pool", tiny_variables, tiny_layout, backbone="tiny")


def test_two_writers_and_writers_that_are_killed(tmp_path):
    """The short form of `make torture`."""
    out = tmp_path / "result.json"
    command = [sys.executable, str(TORTURE), "--adds", "3", "--kills", "4", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["two_writers"] == {"added": 6, "lost": 0, "not_wanted": 0}
    assert result["kills"]["kills"] == {"add": 1, "remove": 1, "rename": 1, "compact": 1}
    assert [result["kills"][key] for key in ("lost", "torn", "repairs", "left_after_compact")] == [0] * 4


def test_the_long_form_has_been_run():
    result = json.loads((TORTURE.parent.parent / "benchmarks" / "results" / "torture.json").read_text())
    assert result["two_writers"] == {"added": 100, "lost": 0, "not_wanted": 0}
    assert sum(result["kills"]["kills"].values()) == 100
    assert [result["kills"][key] for key in ("lost", "torn", "repairs", "left_after_compact")] == [0] * 4
    assert min(result["kills"]["was_as_before"].values()) and min(result["kills"]["was_done"].values())


def test_a_handle_goes_on_from_what_others_have_written(pool, tiny_variables, moved):
    stored = {"a": add_from(pool, "a", "pretrained", tiny_variables, moved, 1)}
    other = Pool.open(pool.folder)
    stored["b"] = add_from(pool, "b", "a", tiny_variables, moved, 2)
    stored["c"] = add_from(other, "c", "a", tiny_variables, moved, 3)  # knows nothing of b
    assert other.tasks == ("a", "b", "c") and pool.tasks == ("a", "b")
    assert [one.id for one in other.index.versions] == [1, 2, 3]
    stored["d"] = add_from(pool, "d", "b", tiny_variables, moved, 4)
    assert_all(pool, stored)
    assert other.tasks == ("a", "b", "c")
    other.refresh()
    assert_all(other, stored)


def test_one_name_of_two_writers_is_stored_once(pool, tiny_variables, moved):
    other = Pool.open(pool.folder)
    stored = add_task(pool, "a", tiny_variables, moved, 1)
    before = file_hashes(pool.folder), (pool.folder / "index.json").read_bytes()
    with pytest.raises(CwpsError, match=r"another process has stored a@1 since .* nothing was written"):
        add_task(other, "a", tiny_variables, moved, 2)
    assert (file_hashes(pool.folder), (pool.folder / "index.json").read_bytes()) == before
    assert_all(pool, {"a": stored})
    add_task(pool, "a", tiny_variables, moved, 3)  # who knows the first may add a second
    assert pool.version("a").name == "a@2"


def test_rows_that_are_gone_are_not_borrowed(pool, tiny_variables, moved):
    """Not even where others have their number or their folder's name by now."""
    add_from(pool, "a", "pretrained", tiny_variables, moved, 1)
    stale = Pool.open(pool.folder)
    pool.remove("a")
    stored = {"a": add_from(pool, "a", "pretrained", tiny_variables, moved, 2)}
    with pytest.raises(CwpsError, match=r"a@1 was removed after this pool was opened; open it again"):
        stale.effective("a")
    stale = Pool.open(pool.folder)
    stale.effective("a"), stale._trees.rows(2)
    pool.remove("a")
    with pytest.raises(CwpsError, match=r"'b' is restored from a@1, removed by another process since"):
        add_from(stale, "b", "a", tiny_variables, moved, 3)
    stored = {"c": add_from(stale, "c", "pretrained", tiny_variables, moved, 4)}
    assert_all(stale, stored)


def test_what_was_renamed_meanwhile_is_still_borrowed_of(pool, tiny_variables, moved):
    stored = {"a": add_from(pool, "a", "pretrained", tiny_variables, moved, 1)}
    stale = Pool.open(pool.folder)
    pool.rename("a", "z")
    stored["b"] = add_from(stale, "b", "a", tiny_variables, moved, 2)
    stored["z"] = stored.pop("a")
    assert_all(stale, stored)
    assert "z" in stale.relation("b")


def test_a_version_that_another_process_has_stored_is_not_removed_by_the_name_of_an_earlier(
    pool, tiny_variables, moved
):
    add_task(pool, "a", tiny_variables, moved, 1)
    stale = Pool.open(pool.folder)
    second = add_task(pool, "a", tiny_variables, moved, 2)
    with pytest.raises(CwpsError, match=r"'a' is a@2 now, which another process has stored; nothing was"):
        stale.remove("a")
    assert_all(pool, {"a": second})


def test_a_method_that_builds_on_all_of_its_tasks_knows_all(pool, tiny_variables):
    stale = Pool.open(pool.folder)
    trees = Stored({"params": tiny_variables["params"], "other": {}})
    pool.add_stored("a", methods.resolve("packnet"), trees, {})
    stale.add_stored("b", methods.resolve("finetune"), trees, {})
    stale = Pool.open(pool.folder)
    pool.add_stored("c", methods.resolve("packnet"), trees, {})
    with pytest.raises(CwpsError, match=r"has stored c@1 since .* packnet builds on all of its tasks"):
        stale.add_stored("d", methods.resolve("packnet"), trees, {})


def test_a_pool_in_the_place_of_another_is_another(pool, tmp_path, tiny_variables, tiny_layout, moved):
    other = {**tiny_variables, "params": moved(tiny_variables["params"], 0.1, 1)}
    pool.effective("pretrained")
    pool.folder.rename(tmp_path / "away")
    Pool.create(pool.folder, other, tiny_layout)
    with pytest.raises(CwpsError, match="another pool is in this folder now"):
        add_task(pool, "a", tiny_variables, moved, 1)


def test_threads_add_tasks_by_handles_of_their_own(pool, tiny_variables, moved):
    wanted, failed = {}, []

    def write(number: int) -> None:
        try:
            params = moved(tiny_variables["params"], 0.5, number)
            one = Pool.open(pool.folder)
            gates = random_gates(one.layout, number, share=1)
            one.add(f"task{number}", params, {}, gates, {}, ("pretrained",), {})
            wanted[f"task{number}"] = params
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pool.refresh()
    assert not failed and sorted(pool.tasks) == sorted(wanted) and pool.verify() == []
    for name, params in wanted.items():
        chex.assert_trees_all_equal(pool.effective(name)["params"], params)


def test_what_a_dead_writer_left_is_swept_by_the_next(pool, tiny_variables, moved):
    left = pool.folder / "tasks" / ".partial-1-x"
    (left / "new" / "own").mkdir(parents=True)
    (pool.folder / ".index.json.1").write_text("{")
    (pool.folder / "tasks" / "a@1" / "own").mkdir(parents=True)  # killed before the index named it
    (pool.folder / "tasks" / "a@1" / "own" / "old").write_text("torn")
    assert Pool.open(pool.folder).tasks == ()
    stored = add_task(pool, "a", tiny_variables, moved, 1)
    assert not left.exists() and not (pool.folder / ".index.json.1").exists()
    assert_all(pool, {"a": stored})


def hold(folder: str, task: str, ready) -> None:
    with locked(pathlib.Path(folder) / ".lock", "held") if not task else Pool.open(folder).learning(task):
        ready.send(os.getpid())
        time.sleep(600)


def test_a_task_that_another_process_learns_is_refused_before_training(pool, tiny_variables, moved):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    holder = context.Process(target=hold, args=(str(pool.folder), "a", theirs))
    holder.start()
    number = ours.recv()
    told = rf"'a' is being learned by process {number}; try again"
    with pytest.raises(CwpsError, match=told), pool.learning("a"):
        raise AssertionError
    with (
        pool.learning("b"),
        pytest.raises(CwpsError, match="'b' is being"),
        Pool.open(pool.folder).learning("b"),
    ):
        raise AssertionError
    add_task(Pool.open(pool.folder), "c", tiny_variables, moved, 1)  # other tasks are stored meanwhile
    os.kill(number, signal.SIGKILL)
    holder.join()
    with pool.learning("a"):
        assert pool.tasks == ("c",), "it sees what is there by now"
    with pytest.raises(CwpsError, match="cannot be a task's name"), pool.learning("../a"):
        raise AssertionError


def test_a_writer_waits_for_its_turn_and_a_dead_one_holds_none(pool, tiny_variables, moved, monkeypatch):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    holder = context.Process(target=hold, args=(str(pool.folder), "", theirs))
    holder.start()
    number = ours.recv()
    monkeypatch.setattr(cwps_jax.store.lock, "SECONDS", 0.1)
    files = file_hashes(pool.folder)
    with pytest.raises(
        CwpsError, match=rf"\.lock: this pool is being written by process {number}; try"
    ) as error:
        add_task(pool, "a", tiny_variables, moved, 1)
    assert "\n" not in str(error.value) and file_hashes(pool.folder) == files
    assert Pool.open(pool.folder).effective("pretrained"), "who reads does not wait"
    os.kill(number, signal.SIGKILL)
    holder.join()
    stored = add_task(pool, "a", tiny_variables, moved, 1)
    assert_all(pool, {"a": stored})


def test_a_file_system_without_locks_is_one_clear_line(pool, tiny_variables, moved, monkeypatch):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(CwpsError, match=r"this file system has no locks \(Operation not supported\); put"):
        add_task(pool, "a", tiny_variables, moved, 1)
    assert Pool.open(pool.folder).tasks == ()


def calls_to_open(folder: pathlib.Path) -> int:
    """How many functions run while a pool is opened and shown: unlike seconds, the same on every machine."""
    profile = cProfile.Profile()
    with profile:
        repr(Pool.open(folder))
    return sum(row.callcount for row in profile.getstats())


def test_opening_a_pool_of_a_thousand_tasks_takes_ten_times_the_steps_of_a_hundred(pool):
    """With as much in each record as a resolved config has."""
    record = {
        "learned_with": {f"key{number}": [0.1] * 8 for number in range(60)},
        "accuracy_when_learned": 0.5,
    }
    params = {"params": unflatten({"head/kernel": np.zeros((8, 3), np.float32)})}
    pool.add_stored("task0", methods.resolve("probe"), Stored(params), record)
    (one,) = pool.index.versions
    many = tuple(dataclasses.replace(one, id=1 + n, task=f"task{n}") for n in range(1000))
    dataclasses.replace(pool.index, versions=many[:100]).write(pool.folder)
    hundred = calls_to_open(pool.folder)
    dataclasses.replace(pool.index, versions=many).write(pool.folder)
    opened = Pool.open(pool.folder)
    assert len(opened) == 1000 and "task999" in repr(opened)
    assert calls_to_open(pool.folder) < 10.5 * hundred
    assert hundred < 100 * 20  # the record of a task is read by C in one call
