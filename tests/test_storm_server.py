"""The storm finds every answer right and every malformed request refused, and sees where one is not."""

import asyncio
import importlib.util
import os
import pathlib
import sys

import pytest
from serving import PlainBank, running

from cwps_jax.server.limits import Limits

FILE = pathlib.Path(__file__).parent.parent / "scripts" / "storm_server.py"
TASKS = ("digits", "negative")
sys.path.insert(0, str(FILE.parent))  # its files import each other by their own names


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location(FILE.stem, FILE)
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made  # where dataclasses look their module up
    spec.loader.exec_module(made)
    return made


@pytest.mark.slow
def test_a_small_storm_is_weathered(program, served_pool, served_files):
    bank = PlainBank(served_pool, TASKS)
    with running(bank, served_pool, Limits(batch_size=4, seconds=8)) as client:
        storm = program.Storm(client.base_url.port, os.getpid(), served_pool, TASKS, served_files[:8])
        found = asyncio.run(program.storm(storm, [2], 100))
        kinds = asyncio.run(storm.phase(4, 60, 0.1)).told()
    assert kinds["refused"] == dict.fromkeys([*program.MALFORMED, program.SLOW[0]], 1)
    assert kinds["first_wrong"] == [] and kinds["answers"] == 54
    for phase in (found["calm"]["2"], *found["storm"].values()):
        assert phase["first_wrong"] == [] and phase["p99_ms"] >= phase["p50_ms"] > 0
        assert phase["server_cpu_ms_per_answer"] > 0
    assert sum(phase["answers"] for phase in found["storm"].values()) == 98
    assert found["resident"]["growth"] < 0.5


def test_a_wrong_answer_is_counted(program, served_pool, served_files):
    bank = PlainBank(served_pool, TASKS)
    with running(bank, served_pool) as client:
        storm = program.Storm(client.base_url.port, os.getpid(), served_pool, TASKS, served_files[:8])
        bank.trees["digits"], bank.trees["negative"] = bank.trees["negative"], bank.trees["digits"]
        told = asyncio.run(storm.phase(2, 10)).told()
    assert told["wrong"] > 5 and "not 200" in told["first_wrong"][0]
