"""Signals that ask a program to end, and the exit statuses of main."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import compiling
import pytest

ROOT = pathlib.Path(__file__).parent.parent
# A program that says when it can be asked to end.
BUSY = """
import sys, threading, time
sys.path.insert(0, "cwps_jax")  # without the package, whose imports take seconds
from stop_signals import stop_signals
held = threading.Lock()
held.acquire()
with stop_signals(42, grace={grace}) as stopping:
    print("ready", flush=True)
    if {deaf}:
        held.acquire()
    while not stopping():
        time.sleep(0.001)
    print("stopping", flush=True)
    if {stays}:
        held.acquire()
print("left", flush=True)
{after}
"""


def start(grace: float = 20, deaf: bool = False, stays: bool = False, after: str = "") -> subprocess.Popen:
    program = BUSY.format(grace=grace, deaf=deaf, stays=stays, after=after)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, **pipes)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_the_first_signal_is_told_to_the_program_which_leaves_by_itself(name):
    with start() as process:
        process.send_signal(getattr(signal, name))
        told, error = process.communicate(timeout=30)
    assert (process.returncode, told) == (0, "stopping\nleft\n")
    assert error == f"cwps: {name}: saves the training and ends; a second signal ends it at once\n"


def test_a_program_that_does_not_leave_in_time_is_ended():
    with start(grace=0.3, deaf=True) as process:
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 42 and time.monotonic() - began < 10
    assert error.endswith("cwps: stopped without a save: the same command resumes from the last save\n")


def test_a_second_signal_ends_it_at_once():
    with start(stays=True) as process:
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "stopping\n"
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert error.endswith("cwps: SIGTERM again: ends at once\n")


def test_what_comes_after_it_has_the_signals_of_before():
    with start(after="time.sleep(60)") as process:
        process.send_signal(signal.SIGTERM)
        assert [process.stdout.readline() for _ in range(2)] == ["stopping\n", "left\n"]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM


def test_main_that_is_asked_to_end_has_status_42_and_says_where_it_goes_on(tmp_path):
    environment = compiling.environment()
    workdir, cache = tmp_path / "w", os.environ["CWPS_TEST_CACHE"]
    command = [sys.executable, "-m", "cwps_jax.main", "configs/digits.py", f"--workdir={workdir}"]
    command += ["--config.tasks=('loops',)", "--config.source_epochs=200", f"--config.cache_dir={tmp_path}"]
    command += [f"--config.compilation_cache={cache}"]
    options = dict(text=True, cwd=ROOT, env=environment)
    metrics = workdir / "metrics.jsonl"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **options) as process:  # type: ignore[call-overload]
        while not (metrics.exists() and metrics.read_text()) and process.poll() is None:
            time.sleep(0.05)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 42 and time.monotonic() - began < 30, error
    last = error.splitlines()[-1]
    assert last.startswith("cwps: pretrained/finetune: stopped in its finetune stage, epoch")
    assert last.endswith(f"saved in {workdir}/saves/pretrained/finetune; the same command resumes from there")
    again = subprocess.run([*command, "--config.learning_rate=0.01"], capture_output=True, **options)
    assert again.returncode == 2 and again.stderr.count("\n") == 1
    assert "another one: config.learning_rate (was 0.05, is 0.01); give it what it had" in again.stderr
