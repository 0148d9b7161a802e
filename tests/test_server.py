"""The server answers what `cwps.predict` answers, and refuses the rest in one line that helps."""

import time

import numpy as np
import pytest
import served
from serving import ask, check, check_unharmed, error, picture, png, png_of_size, running

import cwps_jax as cwps
from cwps_jax.server.limits import Limits
from cwps_jax.server.metrics import ENDPOINTS

BIG = 1 << 20


@pytest.fixture(scope="module")
def bank(served_pool):
    return cwps.TaskBank(served_pool, served.TASKS)


@pytest.fixture(scope="module")
def client(bank, served_pool):
    limits = Limits(batch_size=8, request_bytes=BIG, pictures=40, seconds=20, held_requests=4)
    with running(bank, served_pool, limits) as client:
        yield client


def test_every_task_answers_as_predict_does(client, served_pool, served_files):
    """Turned, grey, CMYK and clear pictures of all classes, for one, several and all tasks."""
    check(served_pool, served_files[:40], ask(client, served_files[:40], params={"task": "negative"}))
    odd = [file for file in served_files if not file.endswith(("0.png", "1.png", "2.png"))][-9:]
    answer = ask(client, odd, params={"task": ["negative", "digits"]})
    assert [one["task"] for one in answer.json()["predictions"][0]["answers"]] == ["negative", "digits"]
    check(served_pool, odd, answer)
    check(served_pool, odd, ask(client, odd))
    named = ask(client, odd[:1], data={"task": "digits"}, params={"top": 2}).json()["predictions"][0]
    assert [one["task"] for one in named["answers"]] == ["digits"] and len(named["answers"][0]["top"]) == 2
    raw = client.post(
        "/v1/predict?task=negative", content=picture(odd[0])[1], headers={"content-type": "image/jpeg"}
    )
    (got,) = raw.json()["predictions"][0]["answers"]
    wanted = answer.json()["predictions"][0]["answers"][0]
    assert got["class"] == wanted["class"]
    assert got["probability"] == pytest.approx(wanted["probability"], abs=1e-5)  # of a batch of another size


def test_tasks_are_listed_with_bytes_version_and_owners(client, served_pool):
    told = client.get("/v1/tasks").json()
    listed = {one["task"]: one for one in told["tasks"]}
    assert set(listed) == {"digits", "negative", "earlier"}
    assert told["resident"] == client.server.bank.resident and told["resident"]["device"] > 0
    negative = listed["negative"]
    assert negative["bytes"] == served_pool.version("negative").bytes and negative["loaded"]
    assert negative["version"] == "negative@1" and negative["classes"] == list(served.CLASSES)
    assert negative["owners"] == pytest.approx(served_pool.relation("negative"))
    assert not listed["earlier"]["loaded"] and listed["earlier"]["classes"] == []


WRONG = {
    "not a picture": (b"no picture" * 9, 422, "not a JPEG, PNG"),
    "empty": (b"", 422, "the file is empty"),
    "truncated": (None, 422, "broken PNG file"),
    "too large by its header": (png_of_size(13_000, 13_000), 413, "13000 x 13000 pixels are more than"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_picture_is_refused_by_name(client, served_files, case):
    content, status, why = WRONG[case]
    content = picture(served_files[0])[1][:60] if content is None else content
    begun = time.monotonic()
    line = error(ask(client, [served_files[0], ("odd.png", content)]), status)
    assert why in line and "picture 'odd.png'" in line and time.monotonic() - begun < 5


def test_pixels_are_counted_before_they_are_decoded(bank, served_pool):
    with running(bank, served_pool, Limits(batch_size=4, pixels=100)) as client:
        assert ask(client, [("a.png", png(np.zeros((10, 10), np.uint8)))]).status_code == 200
        line = error(ask(client, [("a.png", png_of_size(11, 10))]), 413)
        assert "11 x 10 pixels are more than 100" in line


@pytest.mark.parametrize(
    ("path", "given", "status", "why"),
    [
        ("/v1/predict?task=negatve", {}, 404, "did you mean 'negative'?"),
        ("/v1/predict?task=earlier", {}, 404, "POST /v1/load_task loads it"),
        ("/v1/load_task", {"json": {"task": "earlier"}}, 422, "learn it again"),
        ("/v1/predict?top=0", {}, 422, "query.top"),
        ("/v1/predict", {"files": [("x", ("a", b"x"))] * 41}, 413, "41 pictures are more than 40"),
        ("/v1/predict", {"files": {"task": (None, b"digits")}}, 400, "send files"),
        ("/v1/predict", {"headers": {"content-type": "text/plain"}}, 415, "text/plain is not what"),
        ("/v1/predict", {"json": {}}, 404, "no task that takes arrays is loaded"),
        ("/v1/predict", {"headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
        ("/v1/load_task", {"json": {"task": "negatve"}}, 404, "did you mean 'negative'?"),
        ("/v1/unload_task", {"json": {"task": "digts"}}, 404, "did you mean 'digits'?"),
        ("/v1/unload_task", {"json": {"name": "digits"}}, 422, "Field required"),
        ("/v1/unload_task", {"content": b"{"}, 422, "; see /docs for what this endpoint takes"),
        ("/v1/unload", {"json": {}}, 404, "/docs"),
        ("/ready", {}, 405, "/docs"),
    ],
)  # fmt: skip
def test_whatever_is_wrong_is_told_in_one_line(client, served_files, path, given, status, why):
    given = given or {"files": {"images": picture(served_files[0])}}
    assert why in error(client.post(path, **given), status)


@pytest.mark.parametrize("told", [True, False], ids=["by its length", "in chunks"])
def test_a_long_body_is_refused_without_being_kept(client, served_files, told):
    size = 100 * BIG
    chunks = (bytes(BIG) for _ in range(100))
    headers = {"content-type": "image/png"} | ({"content-length": str(size)} if told else {})
    line = error(client.post("/v1/predict", content=chunks, headers=headers), 413)
    assert f"more than {BIG} bytes" in line
    check_unharmed(client, served_files)
    # A body is let go when its answer has been sent, so a client may be there first.
    until = time.monotonic() + 10
    while "cwps_held_bytes 0.0" not in client.get("/metrics").text:
        assert time.monotonic() < until
        time.sleep(0.05)


TOKEN = "a-long-enough-token"


def test_a_token_is_asked_for_everything_of_the_pool(bank, served_pool, served_files):
    with running(bank, served_pool, token=TOKEN) as client:
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
