"""What local.sh, babysit.sh and tpu_host.sh do with their processes; stand-ins take main's place."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent
LAUNCH = ROOT / "launch"


def program(path: pathlib.Path, body: str) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{body}")
    path.chmod(0o755)
    return path


def environment(**variables) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], **{name: str(value) for name, value in variables.items()}}


def alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return pathlib.Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def wait_for(condition, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Local:
    """Starts local.sh with a stand-in for Python that writes its id down and then does what `body` says."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder

    def start(self, processes: int, body: str, grace: int = 1) -> subprocess.Popen:
        number = 'me=$(printf "%s\\n" "$@" | sed -n "s/--process=//p")\n'
        told = 'echo $$ > "$FOLDER/$me.tmp"; mv "$FOLDER/$me.tmp" "$FOLDER/$me.id"\n'
        python = program(self.folder / "python", number + told + body)
        variables = environment(PYTHON=python, PORT=6000, GRACE=grace, FOLDER=self.folder)
        command = ["bash", str(LAUNCH / "local.sh"), str(processes), "2", "configs/digits.py"]
        with (self.folder / "shown").open("w") as shown:
            return subprocess.Popen(command, env=variables, stdout=shown)

    def started(self, processes: int) -> list[int]:
        files = [self.folder / f"{process}.id" for process in range(processes)]
        wait_for(lambda: all(file.exists() for file in files))
        return [int(file.read_text()) for file in files]


@pytest.fixture
def local(tmp_path) -> Local:
    return Local(tmp_path)


def test_all_processes_get_their_number_and_the_same_coordinator(local):
    started = local.start(3, 'echo "$XLA_FLAGS $JAX_PLATFORMS $*"')
    assert started.wait(60) == 0
    lines = sorted((local.folder / "shown").read_text().splitlines())
    assert lines == [
        "--xla_force_host_platform_device_count=2 cpu -m cwps_jax.main --config=configs/digits.py "
        f"--coordinator=127.0.0.1:6000 --processes=3 --process={process}"
        for process in range(3)
    ]


def test_the_status_is_that_of_the_first_that_failed(local):
    """The others have their time to end by themselves, and to fail with what they make of it."""
    started = local.start(
        3, "[[ $me == 1 ]] && exit 7; sleep 0.7; [[ $me == 2 ]] && exit 9; exit 0", grace=20
    )
    assert started.wait(60) == 7


def test_who_does_not_end_after_a_failure_is_killed(local):
    started = local.start(2, "trap '' TERM; [[ $me == 0 ]] && exit 3; while true; do sleep 0.1; done")
    numbers = local.started(2)
    assert started.wait(60) == 3
    assert not any(map(alive, numbers))


def test_a_killed_process_counts_as_128_and_its_signal(local):
    started = local.start(2, "[[ $me == 1 ]] && kill -KILL $$; sleep 0.5")
    assert started.wait(60) == 128 + signal.SIGKILL


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_passed_on_once_and_all_may_save(local, sent):
    body = (
        "trap 'echo term >> \"$FOLDER/$me.got\"; sleep 0.4; exit 42' TERM\n"
        'touch "$FOLDER/$me.ready"; while true; do sleep 0.05; done'
    )
    started = local.start(2, body, grace=20)
    numbers = local.started(2)
    wait_for(lambda: all((local.folder / f"{process}.ready").exists() for process in range(2)))
    started.send_signal(sent)
    assert started.wait(60) == 42
    assert [(local.folder / f"{process}.got").read_text() for process in range(2)] == ["term\n"] * 2
    assert not any(map(alive, numbers))


def test_the_processes_find_each_other_and_all_devices(tmp_path):
    """By JAX itself, with the addresses and devices that they are given."""
    (tmp_path / "joined.py").write_text(JOINED)
    instead = f'[[ $1 == -m ]] && shift 2 && set -- "{tmp_path}/joined.py" "$@"\n'
    python = program(tmp_path / "python", f'{instead}exec "{sys.executable}" "$@"\n')
    command = ["bash", str(LAUNCH / "local.sh"), "2", "4", "configs/digits.py"]
    done = subprocess.run(
        command, env=environment(PYTHON=python), cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["process 0: 4 of 8 devices", "process 1: 4 of 8 devices"]


JOINED = """
import sys
import jax
given = dict(part[2:].split("=") for part in sys.argv if part.startswith("--"))
jax.distributed.initialize(given["coordinator"], int(given["processes"]), int(given["process"]))
devices = f"{jax.local_device_count()} of {jax.device_count()} devices"
print(f"process {jax.process_index()}: {devices}", flush=True)
"""


class Cloud:
    """A stand-in for gcloud: `run` on the TPU ends with one after the other of `codes`."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder

    def babysit(self, *codes: int, state: str = "", **variables) -> subprocess.CompletedProcess:
        (self.folder / "codes").write_text("".join(f"{code}\n" for code in codes))
        (self.folder / "state").write_text(state)
        program(
            self.folder / "bin" / "gcloud",
            'echo "$*" >> "$FOLDER/calls"\n'
            'case "$*" in\n'
            '*" create "*) echo READY > "$FOLDER/state" ;;\n'
            '*" delete "*) : > "$FOLDER/state" ;;\n'
            '*" describe "*) [[ -s $FOLDER/state ]] && cat "$FOLDER/state" ;;\n'
            '*"tpu_host.sh run"*)\n'
            'code=$(head -n 1 "$FOLDER/codes"); sed -i 1d "$FOLDER/codes"; exit "$code" ;;\n'
            "esac\n",
        )
        program(self.folder / "bin" / "git", "exit 0\n")
        told = {"NAME": "mine", "ZONE": "z", "TYPE": "v5litepod-8", "RUN_ID": "first", "RUNS": "/r"}
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        told |= environment(**{"PATH": path, "FOLDER": self.folder, "PAUSE": 0, **variables})
        command = ["bash", str(LAUNCH / "babysit.sh"), "configs/digits.py"]
        return subprocess.run(command, env=told, capture_output=True, text=True, timeout=60)

    def calls(self, verb: str) -> int:
        return sum(verb in line for line in (self.folder / "calls").read_text().splitlines())


@pytest.fixture
def cloud(tmp_path) -> Cloud:
    return Cloud(tmp_path)


@pytest.mark.parametrize("code", [0, 1, 2, 3, 41, 43, 126])
def test_babysit_stops_for_what_would_come_again(cloud, code):
    done = cloud.babysit(code, 0)
    assert done.returncode == code
    assert cloud.calls("tpu_host.sh run") == 1
    assert cloud.calls(" delete ") == 1  # nothing is left that costs


@pytest.mark.parametrize("code", [42, 127, 137, 143, 255])
def test_babysit_goes_on_with_the_same_run(cloud, code):
    done = cloud.babysit(code, code, 0)
    assert done.returncode == 0
    assert cloud.calls("tpu_host.sh run") == cloud.calls("--workdir=/r/first") == 3
    assert cloud.calls(" create ") == 1  # the TPU is still there


def test_babysit_gives_up_after_its_retries(cloud):
    done = cloud.babysit(42, 42, 42, 0, RETRIES=2, KEEP=1)
    assert done.returncode == 42
    assert cloud.calls("tpu_host.sh run") == 3
    assert cloud.calls(" delete ") == 0


def test_babysit_makes_a_tpu_anew_that_was_taken_away(cloud):
    done = cloud.babysit(0, state="PREEMPTED\n")
    assert done.returncode == 0
    verbs = [verb for line in (cloud.folder / "calls").read_text().splitlines() for verb in line.split()[3:4]]
    assert verbs == ["describe", "delete", "create", "scp", "ssh", "ssh", "delete"]


@pytest.mark.parametrize(("code", "again"), [(0, False), (1, False), (2, False), (42, True), (137, True)])
def test_slurm_puts_a_run_back_that_saved_or_was_killed(tmp_path, code, again):
    program(tmp_path / "srun", f"exit {code}\n")
    program(tmp_path / "scontrol", 'echo "$*"\n')
    told = environment(PATH=f"{tmp_path}:{os.environ['PATH']}", RUN_ID="first", RUNS="r", SLURM_JOB_ID=7)
    command = ["bash", str(LAUNCH / "slurm.sbatch"), "configs/digits.py"]
    done = subprocess.run(command, env=told, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (code, "requeue 7\n" if again else "")


class Host:
    """A TPU's host: the repository's scripts in a home of their own, and a stand-in for main."""

    def __init__(self, home: pathlib.Path, body: str) -> None:
        self.home = home
        shutil.copytree(LAUNCH, home / "cwps_jax" / "launch")
        self.variables = environment(PYTHON=program(home / "python", body), HOME_FOLDER=home)

    def run(self) -> subprocess.Popen:
        command = ["bash", str(self.home / "cwps_jax" / "launch" / "tpu_host.sh"), "run", "--config=c.py"]
        with (self.home / "shown").open("w") as shown:
            return subprocess.Popen(command, env=self.variables, stdout=shown)


@pytest.fixture
def host(tmp_path):
    return lambda body: Host(tmp_path, body)


def test_a_host_shows_mains_output_keeps_it_and_ends_with_its_status(host, tmp_path):
    started = host('echo "got $*"; sleep 1; exit 42\n').run()
    assert started.wait(60) == 42
    for output in ("shown", "cwps_jax.log"):
        assert "got -u -m cwps_jax.main --distributed --config=c.py\n" in (tmp_path / output).read_text()


def test_a_host_ends_the_run_that_an_earlier_connection_left_behind(host, tmp_path):
    body = (
        "if [[ -e $HOME_FOLDER/second ]]; then exit 0; fi\n"
        "trap 'echo saved > \"$HOME_FOLDER/saved\"; exit 42' TERM\n"
        'touch "$HOME_FOLDER/ready"; while true; do sleep 0.05; done\n'
    )
    machine = host(body)
    first = machine.run()
    wait_for((tmp_path / "ready").exists)
    first.kill()  # the connection breaks: main goes on
    first.wait(10)
    main = int((tmp_path / "cwps_jax.pid").read_text())
    assert alive(main)
    (tmp_path / "second").touch()
    second = machine.run()
    assert second.wait(60) == 0
    assert (tmp_path / "saved").read_text() == "saved\n"
    assert not alive(main)


def test_a_host_leaves_alone_who_has_the_number_of_an_earlier_run(host, tmp_path):
    machine = host("exit 0\n")
    with subprocess.Popen(["sleep", "60"]) as other:
        (tmp_path / "cwps_jax.pid").write_text(f"{other.pid}\n")
        assert machine.run().wait(60) == 0
        assert other.poll() is None
        other.terminate()
