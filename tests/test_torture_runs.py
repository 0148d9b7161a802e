"""Whole runs that are stopped and killed: the short form of `make torture`, and what its long form found."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PROMISED = ("lost", "torn", "repairs", "that_ended_otherwise")


def test_a_run_that_is_stopped_and_killed_ends_as_if_nothing_had_happened(tmp_path):
    out = tmp_path / "result.json"
    command = [sys.executable, "scripts/torture_runs.py", "--devices", "1", "--kills", "2", "--terms", "1"]
    command += ["--tasks", "1"]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())["by_devices"]["1"]
    assert found["stops"] == {"SIGTERM": 1, "SIGKILL": 1, "SIGKILL before a write": 1}
    assert found["runs_that_came_to_their_end"] >= 1
    assert [found[key] for key in PROMISED] == [0] * 4


@pytest.mark.parametrize(
    ("file", "devices", "kills"),
    [("torture_runs", "1", 100), ("torture_runs", "8", 100), ("torture_runs_2x4", "2x4", 8)],
)
def test_the_long_form_has_been_run(file, devices, kills):
    found = json.loads((ROOT / "benchmarks" / "results" / f"{file}.json").read_text())
    one = found["by_devices"][devices]
    assert one["stops"]["SIGKILL"] + one["stops"]["SIGKILL before a write"] >= kills
    assert one["runs_that_came_to_their_end"] >= 1
    assert [one[key] for key in PROMISED] == [0] * 4
