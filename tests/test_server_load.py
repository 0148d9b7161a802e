"""The server under many clients: slow ones, batches, a full queue, tasks that change meanwhile."""

import concurrent.futures
import shutil
import socket
import threading
import time

import pytest
import served
from serving import PlainBank, ask, check, check_unharmed, error, running

import cwps_jax as cwps
from cwps_jax.core.masks import all_gates
from cwps_jax.server.limits import Limits


@pytest.fixture(scope="module")
def bank(served_pool):
    return PlainBank(served_pool)


def test_a_slow_client_is_cut_off_and_harms_no_other(bank, served_pool, served_files):
    with running(bank, served_pool, Limits(batch_size=4, seconds=3)) as client:
        place = client.base_url.host, client.base_url.port
        with socket.create_connection(place) as slow, socket.create_connection(place) as silent:
            slow.sendall(
                b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
                b"Content-Length: 1000\r\n\r\nabc"
            )
            silent.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: local")
            begun = time.monotonic()
            check_unharmed(client, served_files)
            assert time.monotonic() - begun < 3
            slow.settimeout(10)
            silent.settimeout(10)
            answer = b"".join(iter(lambda: slow.recv(4096), b""))
            assert answer.startswith(b"HTTP/1.1 408") and b"has not come within 3 seconds" in answer
            assert silent.recv(10) == b""  # closed: there is no request yet that could be answered
            assert time.monotonic() - begun < 12


def test_bodies_in_memory_are_bounded_over_all_clients(bank, served_pool, served_files):
    with running(
        bank, served_pool, Limits(batch_size=4, request_bytes=1000, held_requests=1, seconds=20)
    ) as client:
        place = client.base_url.host, client.base_url.port
        with socket.create_connection(place) as first:
            first.sendall(
                b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
                b"Content-Length: 900\r\n\r\n" + bytes(800)
            )
            while "cwps_held_bytes 800.0" not in client.get("/metrics").text:
                time.sleep(0.01)
            answer = client.post("/v1/predict", content=bytes(300), headers={"content-type": "image/png"})
            assert "too many bytes" in error(answer, 503) and answer.headers["retry-after"] == "1"


def test_requests_of_many_clients_are_joined_across_tasks(served_pool, served_files):
    bank, seen, let_go = PlainBank(served_pool), [], threading.Event()

    def before(tasks):
        seen.append(sorted(tasks))
        if len(seen) == 1:
            let_go.wait(20)

    with running(bank, served_pool, Limits(batch_size=8, wait_ms=1)) as client:
        bank.before = before
        with concurrent.futures.ThreadPoolExecutor(9) as clients:
            first = clients.submit(ask, client, served_files[:1], params={"task": "digits"})
            while not seen:
                time.sleep(0.01)
            others = [
                clients.submit(ask, client, served_files[n : n + 1], params={"task": served.TASKS[n % 2]})
                for n in range(8)
            ]
            while client.server.batcher.waiting < 8:
                time.sleep(0.01)
            let_go.set()
            for number, one in enumerate(others):
                check(served_pool, served_files[number : number + 1], one.result())
            assert first.result().status_code == 200
        assert seen[1:] == [["digits"] * 4 + ["negative"] * 4]
        text = client.get("/metrics").text
        assert 'cwps_batch_answers_bucket{le="8.0"} 2.0' in text
        assert 'cwps_requests_total{endpoint="/v1/predict",status="200"} 9.0' in text
        assert 'cwps_resident_bytes{where="disk"} 7.0' in text and "cwps_tasks 3.0" in text


def test_a_full_queue_and_too_much_at_once_are_refused(served_pool, served_files):
    bank, let_go, seen = PlainBank(served_pool, ["digits"]), threading.Event(), []
    with running(bank, served_pool, Limits(batch_size=1, queue=2)) as client:
        bank.before = lambda tasks: (seen.append(tasks), let_go.wait(20))
        with concurrent.futures.ThreadPoolExecutor(3) as clients:
            under_way = [clients.submit(ask, client, served_files[:1])]
            while not seen:
                time.sleep(0.01)
            under_way.append(clients.submit(ask, client, served_files[:2]))
            while client.server.batcher.waiting < 2:
                time.sleep(0.01)
            answer = ask(client, served_files[:1])
            assert "2 answers wait already" in error(answer, 503) and answer.headers["retry-after"] == "1"
            assert "3 answers are more than the 2" in error(ask(client, served_files[:3]), 413)
            let_go.set()
            assert [one.result().status_code for one in under_way] == [200, 200]


def test_a_bank_that_is_busy_with_a_task_holds_up_nobody(served_pool, served_files):
    """Its bytes cannot be told meanwhile: what asks for them waits alone."""
    bank, let_go, asked = Busy(served_pool, ["digits"]), threading.Event(), threading.Event()
    with running(bank, served_pool) as client, concurrent.futures.ThreadPoolExecutor(2) as clients:
        bank.before_bytes = lambda: (asked.set(), let_go.wait(20))
        waiting = [clients.submit(client.get, path) for path in ("/metrics", "/v1/tasks")]
        asked.wait(20)
        check_unharmed(client, served_files)
        assert not any(one.done() for one in waiting)
        let_go.set()
        assert [one.result().status_code for one in waiting] == [200, 200]


class Busy(PlainBank):
    before_bytes = staticmethod(lambda: None)

    @property
    def resident(self):
        self.before_bytes()
        return super().resident


def test_an_answer_that_takes_too_long_is_given_up(served_pool, served_files):
    bank, let_go = PlainBank(served_pool, ["digits"]), threading.Event()
    with running(bank, served_pool, Limits(batch_size=4, seconds=1)) as client:
        bank.before = lambda tasks: let_go.wait(20)
        assert "no answer within 1 seconds" in error(ask(client, served_files[:1]), 503)
        let_go.set()
        check_unharmed(client, served_files)


def test_a_task_in_use_is_not_dropped_under_a_request(served_pool, served_files):
    bank, let_go, seen = PlainBank(served_pool), threading.Event(), []
    with running(bank, served_pool) as client, concurrent.futures.ThreadPoolExecutor(3) as clients:
        bank.before = lambda tasks: (seen.append(tasks), let_go.wait(20))
        asked = clients.submit(ask, client, served_files[:1], params={"task": "digits"})
        while not seen:
            time.sleep(0.01)
        unloaded = clients.submit(client.post, "/v1/unload_task", json={"task": "digits"})
        time.sleep(0.2)
        assert "digits" in bank.tasks and not unloaded.done()
        let_go.set()
        check(served_pool, served_files[:1], asked.result())
        assert unloaded.result().json() == {"loaded": ["negative", "earlier"]}
        line = error(ask(client, served_files[:1], params={"task": "digits"}), 404)
        assert "'digits' is not loaded" in line and "load_task" in line
        assert client.post("/v1/load_task", json={"task": "digits"}).status_code == 200
        check(served_pool, served_files[:1], ask(client, served_files[:1], params={"task": "digits"}))


def test_others_are_answered_while_a_task_that_is_loaded_compiles_its_first_answer(served_pool, served_files):
    bank, let_go, seen = PlainBank(served_pool, ["negative"]), threading.Event(), []
    with running(bank, served_pool) as client, concurrent.futures.ThreadPoolExecutor(1) as clients:
        bank.before = lambda tasks: (seen.append(tasks), let_go.wait(20)) if "digits" in tasks else None
        loaded = clients.submit(client.post, "/v1/load_task", json={"task": "digits"})
        while not seen:
            time.sleep(0.01)
        check(served_pool, served_files[:1], ask(client, served_files[:1], params={"task": "negative"}))
        assert not loaded.done()
        let_go.set()
        assert loaded.result().json() == {"loaded": ["negative", "digits"]}
        check(served_pool, served_files[:1], ask(client, served_files[:1], params={"task": "digits"}))


def test_a_task_whose_first_answer_fails_says_why(served_pool, served_files):
    bank = PlainBank(served_pool, ["negative"])

    def before(tasks):
        if "digits" in tasks:
            raise cwps.CwpsError("device_bytes=9: 12 are needed at once; give more")

    bank.before = before
    with running(bank, served_pool) as client:
        assert client.post("/v1/load_task", json={"task": "digits"}).status_code == 200
        line = error(ask(client, served_files[:1], params={"task": "digits"}), 422)
        assert "12 are needed at once" in line and "give more" in line
        check(served_pool, served_files[:1], ask(client, served_files[:1]))


def test_a_changed_pool_is_reloaded_without_a_restart(tmp_path, served_pool, served_files):
    copied = tmp_path / "changed"
    shutil.copytree(served_pool.folder, copied)
    changed = cwps.Pool.open(copied)
    with running(PlainBank(changed), changed) as client:
        assert client.post("/v1/reload").json()["changed"] == []
        other = cwps.Pool.open(copied)
        other.remove("earlier")
        tree = other.effective("negative")  # the next version has the network of another task
        gates, record = all_gates(other.layout, True), dict(other.version("digits").record)
        other.add(
            "digits", tree["params"], {"batch_stats": tree["batch_stats"]}, gates, {}, ("pretrained",), record
        )
        told = client.post("/v1/reload").json()
        assert sorted(told["changed"]) == ["digits", "earlier"] and set(told["loaded"]) == {*served.TASKS}
        first, second = ask(client, served_files[:1]).json()["predictions"][0]["answers"]
        assert {first["version"], second["version"]} == {"digits@2", "negative@1"}
        assert first["probability"] == pytest.approx(second["probability"], abs=1e-6)


def test_one_that_cannot_be_answered_does_not_take_its_batch_along(served_pool, served_files):
    bank = PlainBank(served_pool)
    with running(bank, served_pool, Limits(batch_size=4, wait_ms=300)) as client:
        del bank.trees["digits"]
        with concurrent.futures.ThreadPoolExecutor(2) as clients:
            asked = [
                clients.submit(ask, client, served_files[:1], params={"task": task}) for task in served.TASKS
            ]
            assert "no task digits" in error(asked[0].result(), 422)
            check(served_pool, served_files[:1], asked[1].result())


def test_nobody_is_waited_for_where_nobody_comes(bank, served_pool, served_files):
    with running(bank, served_pool, Limits(batch_size=4, wait_ms=25_000)) as client:
        begun = time.monotonic()
        check_unharmed(client, served_files)
        assert time.monotonic() - begun < 20


def test_a_task_that_cannot_answer_says_why_and_the_others_answer(bank, served_pool, served_files):
    """A bank that serves more than the server can prepare pictures for."""
    with running(bank, served_pool) as client:
        listed = {one["task"]: one for one in client.get("/v1/tasks").json()["tasks"]}
        assert listed["earlier"]["loaded"] and "without what it was learned with" in listed["earlier"]["why"]
        line = error(ask(client, served_files[:1], params={"task": "earlier"}), 422)
        assert "learn it again" in line and str(served_pool.folder) not in line
        (told,) = ask(client, served_files[:1]).json()["predictions"]
        assert [one["task"] for one in told["answers"]] == list(served.TASKS)


def test_loads_and_unloads_under_load_give_no_wrong_answer(served_pool, served_files):
    """Of a real bank, whose rows move while others ask."""
    bank, over = cwps.TaskBank(served_pool, served.TASKS), threading.Event()
    with running(bank, served_pool) as client, concurrent.futures.ThreadPoolExecutor(3) as clients:

        def asking() -> int:
            count = 0
            while not over.is_set():
                check(
                    served_pool, served_files[:1], ask(client, served_files[:1], params={"task": "negative"})
                )
                count += 1
            return count

        asked = [clients.submit(asking) for _ in range(2)]
        for _ in range(10):
            told = client.post("/v1/unload_task", json={"task": "digits"}).json()
            assert told == {"loaded": ["negative"]}
            assert client.post("/v1/load_task", json={"task": "digits"}).status_code == 200
            check(served_pool, served_files[1:2], ask(client, served_files[1:2], params={"task": "digits"}))
        over.set()
        assert min(one.result() for one in asked) > 0


def test_a_client_that_goes_and_a_fault_of_the_bank_are_told_apart(served_pool, served_files):
    bank = PlainBank(served_pool, ["digits"])
    with running(bank, served_pool, Limits(batch_size=1)) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port)) as going:
            going.sendall(
                b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
                b"Content-Length: 900\r\n\r\nabc"
            )
        while 'endpoint="/v1/predict",status="400"} 1.0' not in client.get("/metrics").text:
            time.sleep(0.01)

        def broken(tasks) -> None:
            raise RuntimeError("a fault")

        bank.before = broken
        assert "the server failed" in error(ask(client, served_files[:1]), 500)
        bank.before = lambda tasks: None
        check_unharmed(client, served_files)
