"""The server answers what `cwps.predict` answers, and refuses the rest in one line that helps."""

import concurrent.futures
import shutil
import socket
import threading
import time

import numpy as np
import pytest
import served
from serving import PlainBank, png, png_of_size, running

import cwps_jax as cwps
from cwps_jax.core.masks import all_gates
from cwps_jax.server.limits import Limits
from cwps_jax.server.metrics import ENDPOINTS

BIG = 1 << 20


@pytest.fixture(scope="module")
def pool(served_pool) -> cwps.Pool:
    return served_pool


@pytest.fixture(scope="module")
def files(pool) -> list[str]:
    return sorted(map(str, (pool.folder.parent / "DATA/negative/test").glob("*/[!.]*")))


@pytest.fixture(scope="module")
def bank(pool):
    return PlainBank(pool)


@pytest.fixture(scope="module")
def client(bank, pool):
    limits = Limits(batch_size=8, request_bytes=BIG, pictures=40, seconds=20, held_requests=4)
    with running(bank, pool, limits) as client:
        yield client


def picture(file: str) -> tuple[str, bytes]:
    with open(file, "rb") as stream:
        return file.rsplit("/", 1)[1], stream.read()


def ask(client, files, **known):
    sent = [("images", (picture(file) if isinstance(file, str) else file)) for file in files]
    return client.post("/v1/predict", files=sent, **known)


def error(answer, status: int) -> str:
    """Returns the one line of a refusal, which says all three things."""
    assert answer.status_code == status, answer.text
    assert "\n" not in answer.text
    told = answer.json()["error"]
    assert all(told[key] for key in ("what", "where", "how"))
    return f"{told['where']}: {told['what']}; {told['how']}"


def check(pool, files, answer) -> None:
    """Compares every answer with that of `cwps.predict`."""
    assert answer.status_code == 200, answer.text
    predictions = answer.json()["predictions"]
    assert [one["picture"] for one in predictions] == [file.rsplit("/", 1)[1] for file in files]
    for place, task in enumerate(one["task"] for one in predictions[0]["answers"]):
        wanted = cwps.predict(pool, task, files).top(5)
        for one, top in zip(predictions, wanted, strict=True):
            got = one["answers"][place]
            assert got["version"] == f"{task}@1" and got["class"] == got["top"][0]["class"]
            assert [share["class"] for share in got["top"]] == [name for name, _ in top]
            np.testing.assert_allclose(
                [share["probability"] for share in got["top"]], [share for _, share in top], atol=1e-5
            )


def test_every_task_answers_as_predict_does(client, pool, files):
    """Turned, grey, CMYK and clear pictures of all classes, for one, several and all tasks."""
    check(pool, files[:40], ask(client, files[:40], params={"task": "negative"}))
    odd = [file for file in files if not file.endswith(("0.png", "1.png", "2.png"))][-9:]
    answer = ask(client, odd, params={"task": ["negative", "digits"]})
    assert [one["task"] for one in answer.json()["predictions"][0]["answers"]] == ["negative", "digits"]
    check(pool, odd, answer)
    check(pool, odd, ask(client, odd))
    named = ask(client, odd[:1], data={"task": "digits"}, params={"top": 2}).json()["predictions"][0]
    assert [one["task"] for one in named["answers"]] == ["digits"] and len(named["answers"][0]["top"]) == 2
    raw = client.post(
        "/v1/predict?task=negative", content=picture(odd[0])[1], headers={"content-type": "image/jpeg"}
    )
    assert raw.json()["predictions"][0]["answers"] == answer.json()["predictions"][0]["answers"][:1]


def test_tasks_are_listed_with_bytes_version_and_owners(client, pool):
    told = client.get("/v1/tasks").json()
    listed = {one["task"]: one for one in told["tasks"]}
    assert set(listed) == {"digits", "negative", "earlier"} and told["resident"]["disk"] == 7
    negative = listed["negative"]
    assert negative["bytes"] == pool.version("negative").bytes and negative["loaded"]
    assert negative["version"] == "negative@1" and negative["classes"] == list(served.CLASSES)
    assert negative["owners"] == pytest.approx(pool.relation("negative"))
    assert "without what it was learned with" in listed["earlier"]["why"]


WRONG = {
    "not a picture": (b"no picture" * 9, 422, "not a JPEG, PNG"),
    "empty": (b"", 422, "the file is empty"),
    "truncated": (None, 422, "broken PNG file"),
    "too large by its header": (png_of_size(13_000, 13_000), 413, "13000 x 13000 pixels are more than"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_picture_is_refused_by_name(client, files, case):
    content, status, why = WRONG[case]
    content = picture(files[0])[1][:60] if content is None else content
    begun = time.monotonic()
    line = error(ask(client, [files[0], ("odd.png", content)]), status)
    assert why in line and "picture 'odd.png'" in line and time.monotonic() - begun < 5


def test_pixels_are_counted_before_they_are_decoded(bank, pool):
    with running(bank, pool, Limits(batch_size=4, pixels=100)) as client:
        assert ask(client, [("a.png", png(np.zeros((10, 10), np.uint8)))]).status_code == 200
        line = error(ask(client, [("a.png", png_of_size(11, 10))]), 413)
        assert "11 x 10 pixels are more than 100" in line


@pytest.mark.parametrize(
    ("path", "given", "status", "why"),
    [
        ("/v1/predict?task=negatve", {}, 404, "did you mean 'negative'?"),
        ("/v1/predict?task=earlier", {}, 422, "learn it again"),
        ("/v1/predict?top=0", {}, 422, "query.top"),
        ("/v1/predict", {"files": [("x", ("a", b"x"))] * 41}, 413, "41 pictures are more than 40"),
        ("/v1/predict", {"files": {"task": (None, b"digits")}}, 400, "send files"),
        ("/v1/predict", {"json": {}}, 415, "application/json is not what is read here"),
        ("/v1/predict", {"headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
        ("/v1/load_task", {"json": {"task": "negatve"}}, 404, "did you mean 'negative'?"),
        ("/v1/unload_task", {"json": {"task": "digts"}}, 404, "did you mean 'digits'?"),
        ("/v1/unload_task", {"json": {"name": "digits"}}, 422, "Field required"),
        ("/v1/unload_task", {"content": b"{"}, 422, "valid dictionary"),
        ("/v1/unload", {"json": {}}, 404, "/docs"),
        ("/ready", {}, 405, "/docs"),
    ],
)  # fmt: skip
def test_whatever_is_wrong_is_told_in_one_line(client, files, path, given, status, why):
    given = given or {"files": {"images": picture(files[0])}}
    assert why in error(client.post(path, **given), status)


@pytest.mark.parametrize("told", [True, False], ids=["by its length", "in chunks"])
def test_a_long_body_is_refused_without_being_kept(client, files, told):
    size = 100 * BIG
    chunks = (bytes(BIG) for _ in range(100))
    headers = {"content-type": "image/png"} | ({"content-length": str(size)} if told else {})
    line = error(client.post("/v1/predict", content=chunks, headers=headers), 413)
    assert f"more than {BIG} bytes" in line
    check_unharmed(client, files)
    assert "cwps_held_bytes 0.0" in client.get("/metrics").text


def check_unharmed(client, files) -> None:
    assert ask(client, files[:1]).status_code == 200


def test_a_slow_client_is_cut_off_and_harms_no_other(bank, pool, files):
    with running(bank, pool, Limits(batch_size=4, seconds=3)) as client:
        place = client.base_url.host, client.base_url.port
        with socket.create_connection(place) as slow, socket.create_connection(place) as silent:
            slow.sendall(
                b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
                b"Content-Length: 1000\r\n\r\nabc"
            )
            silent.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: local")
            begun = time.monotonic()
            check_unharmed(client, files)
            assert time.monotonic() - begun < 3
            slow.settimeout(10)
            silent.settimeout(10)
            answer = b"".join(iter(lambda: slow.recv(4096), b""))
            assert answer.startswith(b"HTTP/1.1 408") and b"has not come within 3 seconds" in answer
            assert silent.recv(10) == b""  # closed: there is no request yet that could be answered
            assert time.monotonic() - begun < 12


def test_bodies_in_memory_are_bounded_over_all_clients(bank, pool, files):
    with running(bank, pool, Limits(batch_size=4, request_bytes=1000, held_requests=1, seconds=20)) as client:
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


def test_requests_of_many_clients_are_joined_across_tasks(pool, files):
    bank, seen, let_go = PlainBank(pool), [], threading.Event()

    def before(tasks):
        seen.append(sorted(tasks))
        if len(seen) == 1:
            let_go.wait(20)

    with running(bank, pool, Limits(batch_size=8, wait_ms=1)) as client:
        bank.before = before
        with concurrent.futures.ThreadPoolExecutor(9) as clients:
            first = clients.submit(ask, client, files[:1], params={"task": "digits"})
            while not seen:
                time.sleep(0.01)
            others = [
                clients.submit(ask, client, files[n : n + 1], params={"task": served.TASKS[n % 2]})
                for n in range(8)
            ]
            while client.server.batcher.waiting < 8:
                time.sleep(0.01)
            let_go.set()
            for number, one in enumerate(others):
                check(pool, files[number : number + 1], one.result())
            assert first.result().status_code == 200
        assert seen[1:] == [["digits"] * 4 + ["negative"] * 4]
        text = client.get("/metrics").text
        assert 'cwps_batch_answers_bucket{le="8.0"} 2.0' in text
        assert 'cwps_requests_total{endpoint="/v1/predict",status="200"} 9.0' in text
        assert 'cwps_resident_bytes{where="disk"} 7.0' in text and "cwps_tasks 3.0" in text


def test_a_full_queue_and_too_much_at_once_are_refused(pool, files):
    bank, let_go, seen = PlainBank(pool, ["digits"]), threading.Event(), []
    with running(bank, pool, Limits(batch_size=1, queue=2)) as client:
        bank.before = lambda tasks: (seen.append(tasks), let_go.wait(20))
        with concurrent.futures.ThreadPoolExecutor(3) as clients:
            under_way = [clients.submit(ask, client, files[:1])]
            while not seen:
                time.sleep(0.01)
            under_way.append(clients.submit(ask, client, files[:2]))
            while client.server.batcher.waiting < 2:
                time.sleep(0.01)
            answer = ask(client, files[:1])
            assert "2 answers wait already" in error(answer, 503) and answer.headers["retry-after"] == "1"
            assert "3 answers are more than the 2" in error(ask(client, files[:3]), 413)
            let_go.set()
            assert [one.result().status_code for one in under_way] == [200, 200]


def test_an_answer_that_takes_too_long_is_given_up(pool, files):
    bank, let_go = PlainBank(pool, ["digits"]), threading.Event()
    with running(bank, pool, Limits(batch_size=4, seconds=1)) as client:
        bank.before = lambda tasks: let_go.wait(20)
        assert "no answer within 1 seconds" in error(ask(client, files[:1]), 503)
        let_go.set()
        check_unharmed(client, files)


def test_a_task_in_use_is_not_dropped_under_a_request(pool, files):
    bank, let_go, seen = PlainBank(pool), threading.Event(), []
    with running(bank, pool) as client, concurrent.futures.ThreadPoolExecutor(3) as clients:
        bank.before = lambda tasks: (seen.append(tasks), let_go.wait(20))
        asked = clients.submit(ask, client, files[:1], params={"task": "digits"})
        while not seen:
            time.sleep(0.01)
        unloaded = clients.submit(client.post, "/v1/unload_task", json={"task": "digits"})
        time.sleep(0.2)
        assert "digits" in bank.tasks and not unloaded.done()
        let_go.set()
        check(pool, files[:1], asked.result())
        assert unloaded.result().json() == {"loaded": ["negative", "earlier"]}
        line = error(ask(client, files[:1], params={"task": "digits"}), 404)
        assert "'digits' is not loaded" in line and "load_task" in line
        assert client.post("/v1/load_task", json={"task": "digits"}).status_code == 200
        check(pool, files[:1], ask(client, files[:1], params={"task": "digits"}))


def test_a_changed_pool_is_reloaded_without_a_restart(tmp_path, pool, files):
    copied = tmp_path / "changed"
    shutil.copytree(pool.folder, copied)
    pool = cwps.Pool.open(copied)
    with running(PlainBank(pool), pool) as client:
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
        first, second = ask(client, files[:1]).json()["predictions"][0]["answers"]
        assert {first["version"], second["version"]} == {"digits@2", "negative@1"}
        assert first["probability"] == pytest.approx(second["probability"], abs=1e-6)


def test_one_that_cannot_be_answered_does_not_take_its_batch_along(pool, files):
    bank = PlainBank(pool)
    with running(bank, pool, Limits(batch_size=4, wait_ms=300)) as client:
        del bank.trees["digits"]
        with concurrent.futures.ThreadPoolExecutor(2) as clients:
            asked = [clients.submit(ask, client, files[:1], params={"task": task}) for task in served.TASKS]
            assert "no task digits" in error(asked[0].result(), 422)
            check(pool, files[:1], asked[1].result())


TOKEN = "a-long-enough-token"


def test_a_token_is_asked_for_everything_of_the_pool(bank, pool, files):
    with running(bank, pool, token=TOKEN) as client:
        for path in ("/v1/tasks", "/metrics"):
            answer = client.get(path)
            assert "no token" in error(answer, 401) and answer.headers["www-authenticate"] == "Bearer"
            wrong = {"authorization": f"Bearer {TOKEN}x"}
            assert "wrong" in error(client.get(path, headers=wrong), 401)
            assert client.get(path, headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
        for path in ("/v1/predict", "/v1/load_task", "/v1/unload_task", "/v1/reload"):
            error(client.post(path, json={"task": "digits"}), 401)
        assert [client.get(path).status_code for path in ("/", "/health", "/ready", "/docs")] == [200] * 4


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"host": "localhost.evil.example:80"}, 403),
        ({"host": "localhost:1", "origin": "http://evil.example"}, 403),
        ({"host": "localhost:1", "origin": "http://localhost:2"}, 403),
        ({"host": "localhost:1", "origin": "http://localhost:1"}, 200),
        ({"host": "[::1]:1"}, 200),
        ({"host": "127.0.0.1"}, 200),
    ],
)
def test_pages_of_other_sites_cannot_ask_through_a_browser(client, headers, status):
    assert client.get("/v1/tasks", headers=headers).status_code == status


def test_every_path_is_described(client):
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == ENDPOINTS - {"/", "/docs", "/openapi.json"}
    predict = described["paths"]["/v1/predict"]["post"]
    assert "multipart/form-data" in predict["requestBody"]["content"] and "413" in predict["responses"]
    assert client.get("/health").json() == {"status": "alive"} and client.get("/ready").status_code == 200
