"""The server answers before all sizes of batches are compiled, and while they are, and says which are."""

import threading
import time

import pytest
from serving import PlainBank, ask, check, running

from cwps_jax.server.limits import Limits


def test_it_answers_with_small_batches_until_larger_ones_are_compiled(served_pool, served_files):
    bank, seen, let_go = PlainBank(served_pool, ["digits"]), [], threading.Event()

    def before(tasks):
        seen.append(len(tasks))
        if len(tasks) > 2:
            let_go.wait(20)

    bank.before = before
    limits = Limits(batch_size=6, ready_at=2)
    with running(bank, served_pool, limits, warm=False) as client:
        assert client.get("/ready").json() == {"status": "ready", "compiled": 2, "batch_size": 6}
        while max(seen) <= 2:
            time.sleep(0.01)
        check(served_pool, served_files[:5], ask(client, served_files[:5]))  # the larger one still compiles
        assert seen[-3:] == [2, 2, 1]
        let_go.set()
        while client.get("/ready").json()["compiled"] < 6:
            time.sleep(0.01)
        del seen[:]
        check(served_pool, served_files[:5], ask(client, served_files[:5]))
        assert seen == [5]


def test_batches_stay_small_where_larger_ones_fail(served_pool, served_files, caplog):
    bank = PlainBank(served_pool, ["digits"])

    def before(tasks):
        if len(tasks) > 2:
            raise MemoryError("no room for so many")

    bank.before = before
    with running(bank, served_pool, Limits(batch_size=8), warm=False) as client:
        while "batches stay at 2 answers" not in caplog.text:
            time.sleep(0.01)
        assert client.get("/ready").json()["compiled"] == 2
        check(served_pool, served_files[:5], ask(client, served_files[:5]))


@pytest.fixture
def larger_waits(served_pool):
    """A bank whose batches of several answers wait for an event if they have the task "negative"."""
    bank, seen, let_go = PlainBank(served_pool, ["digits"]), [], threading.Event()

    def before(tasks):
        seen.append(list(tasks))
        if "negative" in tasks and len(tasks) > 1:
            let_go.wait(20)

    bank.before = before
    return bank, seen, let_go


def test_batches_with_a_task_that_is_loaded_later_are_warmed_up_before_they_are_large(
    served_pool, served_files, larger_waits
):
    bank, seen, let_go = larger_waits
    both = {"task": ["digits", "negative"]}
    with running(bank, served_pool, Limits(batch_size=4)) as client:
        del seen[:]
        assert client.post("/v1/load_task", json={"task": "negative"}).status_code == 200
        assert client.get("/ready").json()["compiled"] == 1
        # Programs of larger batches are compiled meanwhile, and nobody waits for them.
        check(served_pool, served_files[:3], ask(client, served_files[:3], params=both))
        assert [tasks for tasks in seen if len(tasks) > 1] == [["negative"] * 2]
        let_go.set()
        while client.get("/ready").json()["compiled"] < 4:
            time.sleep(0.01)
        assert ["negative", "digits", "negative", "digits"] in seen
        del seen[:]
        check(served_pool, served_files[:3], ask(client, served_files[:3], params=both))
        assert [len(tasks) for tasks in seen] == [4, 2]


def test_a_task_may_be_unloaded_while_batches_with_it_are_warmed_up(
    served_pool, served_files, larger_waits, caplog
):
    bank, seen, let_go = larger_waits
    with running(bank, served_pool, Limits(batch_size=4)) as client:
        client.post("/v1/load_task", json={"task": "negative"})
        while ["negative"] * 2 not in seen:
            time.sleep(0.01)
        assert client.post("/v1/unload_task", json={"task": "negative"}).status_code == 200
        let_go.set()  # and now the bank has not got the task any longer
        while client.get("/ready").json()["compiled"] < 4:
            assert "batches stay" not in caplog.text
            time.sleep(0.01)
        check(served_pool, served_files[:3], ask(client, served_files[:3]))
