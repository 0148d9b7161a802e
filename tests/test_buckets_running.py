"""The demo, shrunk, in a bucket of an S3 server on this machine: killed, by two processes, and refused."""

import json
import os
import pathlib
import subprocess
import sys
import time

import compiling
import pytest
from test_distributed import two_processes

import cwps_jax as cwps
from cwps_jax.buckets import Bucket, local_folder
from cwps_jax.buckets.commits import Commits

pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")

ROOT = pathlib.Path(__file__).parent.parent
ADDRESS = "s3://mine/runs/digits"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Variables by which this process and others find the server, and a bucket in it."""
    server = moto_server.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    given = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.get_host_and_port()[1]}",
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
    }
    with pytest.MonkeyPatch.context() as patched:
        for name, value in given.items():
            patched.setenv(name, value)
        import fsspec

        fsspec.filesystem("s3").mkdir("mine")
        yield compiling.environment(PYTHONPATH=str(ROOT))
    server.stop()


def command(workdir: str, *more: str) -> list[str]:
    flags = ("tasks=('negative',)", "compare=()", "epochs=6", "source_epochs=1", "save_minutes=0.03", *more)
    cache = f"compilation_cache={os.environ['CWPS_TEST_CACHE']}"
    given = [f"--config.{flag}" for flag in (*flags, cache, "metrics=('jsonl',)")]
    return [
        sys.executable,
        "-m",
        "cwps_jax.main",
        "--config=configs/digits.py",
        f"--workdir={workdir}",
        *given,
    ]


def files() -> dict:
    return dict(Commits(Bucket(ADDRESS)).newest().files)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_from_the_bucket_on_another_machine(environment, tmp_path):
    """And ends with the pool of a run that nobody stopped and that knows of no bucket, to the bit."""
    started = subprocess.Popen(command(ADDRESS), cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 300
        while not any(path.startswith("saves/negative") for path in files()):
            assert started.poll() is None and time.monotonic() < until, started.stderr.read()
            time.sleep(0.05)
    finally:
        started.kill()
        started.communicate()
    elsewhere = {**environment, "XDG_CACHE_HOME": str(tmp_path / "another machine")}
    done = subprocess.run(command(ADDRESS), cwd=ROOT, env=elsewhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "negative/cwps: goes on in its" in done.stdout and f"The run is in {ADDRESS}" in done.stdout
    pool = cwps.Pool.open(f"{ADDRESS}/pool")
    assert pool.tasks == ("negative",) and pool.verify() == []
    results = json.loads(Bucket(ADDRESS).get("results.json"))
    assert [row["task"] for row in results["rows"]] == ["negative"]
    assert Bucket(ADDRESS).get("report/relation.png") and not any(
        path.startswith("saves/") for path in files()
    )
    lines = Bucket(ADDRESS).get("metrics.jsonl").decode().splitlines()
    assert {json.loads(line)["task"] for line in lines} == {"digits", "negative"}
    alone = subprocess.run(command(str(tmp_path / "alone")), cwd=ROOT, env=environment, capture_output=True)
    assert alone.returncode == 0, alone.stderr
    (one,), (other,) = pool.index.versions, cwps.Pool.open(tmp_path / "alone" / "pool").index.versions
    assert (one.own_sha256, one.rows_sha256) == (other.own_sha256, other.rows_sha256)


@pytest.mark.parametrize(
    ("changes", "address", "told"),
    [
        ({}, "s3://nobody/run", "s3://nobody/run: there is no such bucket; make it, or name another"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "s3://mine/run", "s3://mine/run: cannot be listed"),
    ],
)
def test_a_bucket_that_does_not_answer_is_one_line(environment, changes, address, told):
    done = subprocess.run(
        command(address), cwd=ROOT, env={**environment, **changes}, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and told in done.stderr


def by_slurm(runs: str, environment: dict, folder: pathlib.Path, *flags: str) -> subprocess.CompletedProcess:
    """Runs slurm.sbatch as Slurm does, on one node with one task; stand-ins take its commands' place."""
    for name, body in (
        ("srun", 'while [[ $1 == --* ]]; do shift; done; exec "$@"'),
        ("scontrol", f"touch {folder / 'requeued'}"),
    ):
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)
    task = {
        "JOB_ID": str(os.getpid()),
        "NTASKS": "1",
        "PROCID": "0",
        "LOCALID": "0",
        "STEP_NODELIST": "localhost",
    }
    variables = {
        **environment,
        **{f"SLURM_{name}": value for name, value in task.items()},
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "RUNS": runs,
        "RUN_ID": "first",
    }
    given = ["bash", "launch/slurm.sbatch", "configs/digits.py", *flags]
    return subprocess.run(given, cwd=ROOT, env=variables, capture_output=True, text=True)


def test_a_launch_script_whose_bucket_is_not_there_ends_with_one_line(environment, tmp_path):
    done = by_slurm("s3://nobody/runs/", environment, tmp_path)
    assert done.returncode == 2 and not (tmp_path / "requeued").exists()
    lines = [line for line in done.stderr.splitlines() if line.startswith("cwps: ")]
    assert lines == ["cwps: s3://nobody/runs/first: there is no such bucket; make it, or name another"]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_launch_script_runs_into_a_bucket(environment, tmp_path):
    flags = command("")[5:]
    done = by_slurm("s3://mine/launched", environment, tmp_path, *flags)
    assert done.returncode == 0, done.stderr
    pool = cwps.Pool.open("s3://mine/launched/first/pool")
    assert pool.tasks == ("negative",) and pool.verify() == []


@pytest.mark.slow
def test_two_processes_without_a_shared_folder_see_one_pool(environment):
    address = "s3://mine/runs/pair"
    given = command(address, "epochs=3", "save_minutes=0")[1:]

    def one(port: int, process: int) -> list[str]:
        return [*given, f"--coordinator=localhost:{port}", "--processes=2", f"--process={process}"]

    done = two_processes(one, environment)
    assert [status for status, _, _ in done] == [0, 0], done
    assert cwps.Pool.open(f"{address}/pool").tasks == ("negative",)
    for purpose in ("run", "run1"):
        assert cwps.Pool.open(local_folder(address, purpose) / "pool").verify() == []
