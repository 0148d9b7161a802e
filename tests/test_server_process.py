"""The server as a process: what it refuses to start with, and how it ends."""

import concurrent.futures
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import httpx
import numpy as np
import pytest
from serving import PlainBank, png

import cwps_jax as cwps
from cwps_jax.server import command
from cwps_jax.server.app import make_app
from cwps_jax.server.limits import Limits
from cwps_jax.server.running import is_loopback, serve

TESTS = pathlib.Path(__file__).parent
SLOW = """
import sys, time
import cwps_jax as cwps
from cwps_jax.server.app import make_app
from cwps_jax.server.limits import Limits
from cwps_jax.server.running import serve
from serving import PlainBank
pool = cwps.Pool.open(sys.argv[1])
bank = PlainBank(pool, ["digits"])
app = make_app(bank, pool, Limits())
bank.before = lambda tasks: (time.sleep(1), print("computed", flush=True))
serve(app, "127.0.0.1", 0, Limits())
"""


def started(*command: str):
    """Returns a process that serves, and its address."""
    paths = os.pathsep.join(map(str, (TESTS, TESTS.parent)))
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-W", "error", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    for line in process.stderr:
        if "running on" in line:
            return process, line.split("running on ")[1].split()[0]
    raise AssertionError(process.communicate())


def test_a_signal_lets_it_answer_and_end(served_pool):
    process, address = started("-c", SLOW, str(served_pool.folder))
    sent = {"images": ("a.png", png(np.zeros((9, 9), np.uint8)))}
    with concurrent.futures.ThreadPoolExecutor(1) as clients:
        asked = clients.submit(httpx.post, f"{address}/v1/predict", files=sent, timeout=30)
        while "cwps_held_bytes 0.0" in httpx.get(f"{address}/metrics").text:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert asked.result().status_code == 200
    printed, told = process.communicate(timeout=30)
    assert process.returncode == 0, told
    assert "computed" in printed and "Traceback" not in told
    with pytest.raises(httpx.ConnectError):
        httpx.get(address)


def test_the_command_serves_a_pool(served_pool):
    process, address = started(
        "-m", "cwps_jax.serve", str(served_pool.folder), "--tasks", "digits", "--port=0", "--batch-size=1",
        "--compilation-cache", os.environ["CWPS_TEST_CACHE"],
    )  # fmt: skip
    sent = {"images": ("a.png", png(np.zeros((9, 9), np.uint8)))}
    answer = httpx.post(f"{address}/v1/predict", files=sent, timeout=60).json()
    assert answer["predictions"][0]["answers"][0]["version"] == "digits@1"
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["nowhere"], "nowhere"),
        (["POOL", "--host", "0.0.0.0"], "--host 0.0.0.0: others could ask.*--token-file"),
        (["POOL", "--host", "example.org"], "--token-file"),
        (["POOL", "--port", "65536"], "--port 65536: must be 0 to 65535"),
        (["POOL", "--port", "x"], "invalid int value.*--help"),
        (["POOL", "--batch-size", "0"], "--batch-size 0: must be at least 1"),
        (["POOL", "--pixels", "999999999"], "never decoded"),
        (["POOL", "--token-file", "SHORT"], "16 characters or more"),
        (["POOL", "--token-file", "MISSING"], "MISSING: cannot be read"),
    ],
)
def test_what_it_cannot_start_with_is_one_line(served_pool, tmp_path, arguments, why):
    (tmp_path / "SHORT").write_text("secret\n")
    places = {"POOL": str(served_pool.folder), "SHORT": str(tmp_path / "SHORT")}
    with pytest.raises(cwps.CwpsError, match=why) as error:
        command.main([places.get(one, one) for one in arguments])
    assert "\n" not in str(error.value)


def test_two_tokens_are_refused(served_pool, tmp_path, monkeypatch):
    (tmp_path / "token").write_text("x" * 20)
    monkeypatch.setenv(command.TOKEN, "y" * 20)
    with pytest.raises(cwps.CwpsError, match="give one of them"):
        command.main([str(served_pool.folder), "--token-file", str(tmp_path / "token")])


def test_a_missing_extra_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(cwps.CwpsError, match=r"needs uvicorn, .*pip install 'cwps_jax\[serve\]'"):
        command.main(["somewhere"])


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_a_host_that_others_reach_is_known(host, own):
    assert is_loopback(host) is own


def test_a_place_that_is_taken_is_one_line(served_pool, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *given: None)  # the test's own handlers stay
    bank, limits = PlainBank(served_pool, ["digits"]), Limits(batch_size=1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(cwps.CwpsError, match=f"{port}: cannot listen there; choose another --port"):
            serve(make_app(bank, served_pool, limits), "127.0.0.1", port, limits)
    with pytest.raises(cwps.CwpsError, match="the tasks cannot answer"):
        serve(make_app(Broken(served_pool, ["digits"]), served_pool, limits), "127.0.0.1", 0, limits)


class Broken(PlainBank):
    def answer(self, prepared, tasks):
        raise cwps.CwpsError("the device is on fire; put it out")
