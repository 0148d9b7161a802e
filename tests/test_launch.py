"""The scripts of launch/: the commands that they print, what they refuse, and what shellcheck says."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
GOLDEN = pathlib.Path(__file__).parent / "golden" / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])
SOURCED = ("dry_run.sh", "tpu.sh")

TPU = {"NAME": "mine", "ZONE": "us-west4-a", "TYPE": "v5litepod-16"}
RUN = {**TPU, "RUN_ID": "first", "RUNS": "/mnt/runs"}
XPK = {**RUN, "CLUSTER": "ours", "PROJECT": "p", "IMAGE": "registry/cwps_jax:tpu", "STORAGE": "runs"}
QUEUED = {**RUN, "NFS": "10.0.0.2:/share", "SLICES": "2", "SPOT": "1", "PROJECT": "p"}
BUCKET = {**RUN, "RUNS": "gs://mine/runs/"}
NAMES = "--config.tasks=('a', 'b')"  # of a flag that a shell would take apart

# {golden file: (variables, script and arguments)}; CWPS_WRITE_GOLDEN=1 writes them anew.
CALLS = {
    "local": ({"PORT": "6000"}, ["local.sh", "2", "4", "configs/digits.py", "--workdir", "runs/two", NAMES]),
    "vm_create": (TPU, ["tpu_vm.sh", "create"]),
    "vm_create_spot": ({**TPU, "TYPE": "v6e-8", "SPOT": "1", "PROJECT": "p"}, ["tpu_vm.sh", "create"]),
    "vm_state": (TPU, ["tpu_vm.sh", "state"]),
    "vm_setup": (TPU, ["tpu_vm.sh", "setup"]),
    "vm_run": (RUN, ["tpu_vm.sh", "run", "configs/pacs.py", NAMES]),
    "vm_setup_bucket": (BUCKET, ["tpu_vm.sh", "setup"]),
    "vm_run_bucket": (BUCKET, ["tpu_vm.sh", "run", "configs/pacs.py"]),
    "vm_logs": (TPU, ["tpu_vm.sh", "logs"]),
    "vm_delete": (TPU, ["tpu_vm.sh", "delete"]),
    "queued_create": (QUEUED, ["tpu_queued.sh", "create"]),
    "queued_create_one": (TPU, ["tpu_queued.sh", "create"]),
    "queued_state": (QUEUED, ["tpu_queued.sh", "state"]),
    "queued_setup": (QUEUED, ["tpu_queued.sh", "setup"]),
    "queued_run": (QUEUED, ["tpu_queued.sh", "run", "configs/pacs.py", NAMES]),
    "queued_logs": (QUEUED, ["tpu_queued.sh", "logs"]),
    "queued_delete": (QUEUED, ["tpu_queued.sh", "delete"]),
    "host_install": ({"HOME": "/home/me"}, ["tpu_host.sh", "install"]),
    "host_install_bucket": ({"HOME": "/home/me", "EXTRA": "gcs"}, ["tpu_host.sh", "install"]),
    "host_install_mount": (
        {"HOME": "/home/me"},
        ["tpu_host.sh", "install", "10.0.0.2:/share", "/mnt/runs"],
    ),
    "babysit": (RUN, ["babysit.sh", "configs/pacs.py", NAMES]),
    "babysit_queued": ({**QUEUED, "BY": "tpu_queued.sh", "KEEP": "1"}, ["babysit.sh", "configs/pacs.py"]),
    "xpk": (XPK, ["xpk.sh", "configs/pacs.py", NAMES]),
    "xpk_bucket": ({**XPK, **BUCKET, "STORAGE": ""}, ["xpk.sh", "configs/pacs.py"]),
    "xpk_delete": (XPK, ["xpk.sh", "delete"]),
    "slurm": ({"RUN_ID": "first", "RUNS": "/shared/runs"}, ["slurm.sbatch", "configs/pacs.py", NAMES]),
    "slurm_bucket": ({"RUN_ID": "first", "RUNS": "s3://mine/runs"}, ["slurm.sbatch", "configs/pacs.py"]),
}
# What is wrong: (variables, script and arguments, a part of the one line).
WRONG = [
    ({}, ["local.sh", "2", "4"], "call it as local.sh PROCESSES DEVICES CONFIG"),
    ({}, ["local.sh", "two", "4", "configs/digits.py"], "whole numbers"),
    ({}, ["local.sh", "2", "0", "configs/digits.py"], "whole numbers"),
    ({}, ["tpu_vm.sh", "create"], "NAME is not set"),
    ({**TPU, "TYPE": "h100"}, ["tpu_vm.sh", "create"], "no known generation"),
    ({**TPU, "TYPE": "h100"}, ["tpu_queued.sh", "create"], "no known generation"),
    (TPU, ["tpu_vm.sh"], "call it as tpu_vm.sh create, state"),
    (TPU, ["tpu_vm.sh", "destroy"], "call it as tpu_vm.sh create, state"),
    (TPU, ["tpu_vm.sh", "run", "configs/pacs.py"], "RUN_ID is not set"),
    (RUN, ["tpu_vm.sh", "run"], "run CONFIG"),
    ({**TPU, "SLICES": "0"}, ["tpu_queued.sh", "create"], "SLICES=0"),
    (TPU, ["tpu_queued.sh", "list"], "call it as tpu_queued.sh create, state"),
    (RUN, ["tpu_queued.sh", "run"], "run CONFIG"),
    (
        {**BUCKET, "NFS": "10.0.0.2:/share"},
        ["tpu_vm.sh", "setup"],
        "is a bucket, where NFS cannot be mounted",
    ),
    ({**RUN, "RUNS": "az://mine"}, ["tpu_vm.sh", "run", "configs/pacs.py"], "RUNS=az://mine: give gs://"),
    ({**XPK, "RUNS": "gs:///"}, ["xpk.sh", "configs/pacs.py"], "RUNS=gs://: give gs://"),
    ({"RUN_ID": "a", "RUNS": "http://b"}, ["slurm.sbatch", "configs/pacs.py"], "RUNS=http://b: give gs://"),
    ({}, ["tpu_host.sh", "start"], "call it as tpu_host.sh"),
    (RUN, ["babysit.sh"], "call it as babysit.sh CONFIG"),
    (TPU, ["babysit.sh", "configs/pacs.py"], "RUN_ID is not set"),
    ({**RUN, "BY": "slurm"}, ["babysit.sh", "configs/pacs.py"], "BY=slurm"),
    (XPK, ["xpk.sh"], "call it as xpk.sh CONFIG"),
    ({**XPK, "IMAGE": ""}, ["xpk.sh", "configs/pacs.py"], "IMAGE is not set"),
    ({"RUN_ID": "first", "RUNS": "/r"}, ["slurm.sbatch"], "call it as sbatch"),
    ({"RUN_ID": "first"}, ["slurm.sbatch", "configs/pacs.py"], "RUNS is not set"),
]


def launch(variables: dict[str, str], arguments: list[str]) -> subprocess.CompletedProcess:
    environment = {"PATH": os.environ["PATH"], "PYTHON": "python", "DRY_RUN": "1", **variables}
    command = ["bash", str(LAUNCH / arguments[0]), *arguments[1:]]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=60)


@pytest.mark.parametrize("name", CALLS)
def test_a_dry_run_prints_the_commands_that_are_committed(name):
    done = launch(*CALLS[name])
    assert done.returncode == 0, done.stderr
    golden = GOLDEN / f"{name}.txt"
    if "CWPS_WRITE_GOLDEN" in os.environ:
        golden.write_text(done.stdout)
    assert done.stdout == golden.read_text()
    assert done.stderr == ""


def test_every_golden_file_is_of_a_call():
    assert {path.stem for path in GOLDEN.iterdir()} == CALLS.keys()


def test_a_flag_reaches_main_as_it_was_given():
    """Through two shells on the way to a TPU's host: this one, and the one that ssh starts there."""
    printed = launch(*CALLS["vm_run"]).stdout
    given = subprocess.run(["bash", "-c", f"printf '%s\\0' {printed}"], capture_output=True, text=True).stdout
    remote = given.split("\0")[-2].removeprefix("--command=")
    there = subprocess.run(["bash", "-c", f"printf '%s\\0' {remote}"], capture_output=True, text=True).stdout
    assert there.split("\0")[-4:-1] == ["--config=configs/pacs.py", "--workdir=/mnt/runs/first", NAMES]


@pytest.mark.parametrize(("variables", "arguments", "told"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_usage_is_one_line_and_exit_2(variables, arguments, told):
    done = launch(variables, arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_strict_and_says_how_to_call_it(script):
    text = script.read_text()
    header = text.split("\nset -euo pipefail\n")[0] if script.name not in SOURCED else text
    assert header != text or script.name in SOURCED, "set -euo pipefail"
    assert "# Needs:" in header and "# Call:" in header
    executable = bool(script.stat().st_mode & 0o100)
    assert executable == (script.suffix == ".sh" and script.name not in SOURCED)


def test_shellcheck_finds_nothing():
    program = shutil.which("shellcheck", path=str(pathlib.Path(sys.executable).parent)) or "shellcheck"
    done = subprocess.run([program, *map(str, SCRIPTS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
