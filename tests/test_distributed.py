"""Two processes on this machine do what one does; and what is told where they cannot."""

import json
import os
import pathlib
import socket
import subprocess
import sys
from types import SimpleNamespace

import compiling
import jax
import numpy as np
import pytest
import searched
from stages import run_stages

from cwps_jax import command_line, distributed, main
from cwps_jax.errors import CwpsError, ProcessLost
from cwps_jax.parallel import Parallel
from cwps_jax.store import Pool
from cwps_jax.train.evaluation import Predictor

HERE = pathlib.Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE.parent)}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def two_processes(command, environment=ENVIRONMENT):
    """Runs a command as process 0 and 1, and returns their (exit status, stdout, stderr)."""
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, *command(port, process)],
            cwd=HERE.parent,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in (1, 0)
    ]
    try:
        told = [one.communicate(timeout=400) for one in started]
    finally:
        for one in started:
            one.kill()
    return [(one.returncode, *texts) for one, texts in zip(started, told, strict=True)][::-1]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder in which two processes left what they found, and one of eight devices what it trained."""
    folder = tmp_path_factory.mktemp("pair")
    command = lambda port, process: [str(HERE / "one_of_many.py"), str(port), str(process), str(folder)]
    alone = subprocess.Popen(
        [sys.executable, *command(free_port(), "alone")], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    try:
        done = two_processes(command)
        _, errors = alone.communicate(timeout=400)
    finally:
        alone.kill()
    for status, _, told in (*done, (alone.returncode, "", errors)):
        assert status == 0, told
    return folder


def leaves(folder, name, process):
    with np.load(folder / f"{name}-{process}.npz") as found:
        return [found[f"arr_{number}"] for number in range(len(found.files))]


@pytest.fixture(scope="module")
def alone(tiny_model, tiny_layout, tiny_variables):
    """{name: leaves} of what one process with eight devices finds."""
    trained, recording = run_stages(tiny_model, tiny_layout, tiny_variables, Parallel())
    found = {
        "fetched": recording.fetched,
        "trained": (trained.params, trained.other),
        "gates": trained.gates,
        "sources": trained.finished.moment.found["sources"],
    }
    return {name: jax.tree.leaves(tree) for name, tree in found.items()}


@pytest.mark.parametrize("process", [0, 1])
def test_two_processes_of_four_devices_train_as_one_of_eight(pair, alone, process):
    """Every step's loss, the states between the stages, norm statistics and moments; masks and sources."""
    for name, exact in (("fetched", False), ("trained", False), ("gates", True), ("sources", True)):
        for found, wanted in zip(leaves(pair, name, process), alone[name], strict=True):
            if exact:
                np.testing.assert_array_equal(found, wanted)
            else:  # a norm's variance of 18 has six float32 steps in 1.1e-5
                np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", ["fetched", "trained", "gates", "sources"])
def test_one_process_that_has_a_coordinator_trains_as_two_do_to_the_bit(pair, name):
    """Both sum by Gloo, device by device; without a coordinator XLA adds in another order."""
    for found, wanted in zip(leaves(pair, name, 0), leaves(pair, name, "alone"), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("process", [0, 1])
def test_what_is_spread_over_two_processes_trains_as_one_does(pair, alone, process):
    for found, wanted in zip(leaves(pair, "spread", process), alone["fetched"], strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-5)  # moments are sums of squares


def test_both_processes_hold_the_same_bits(pair):
    for name in ("fetched", "trained", "gates", "sources", "logits"):
        for one, other in zip(leaves(pair, name, 0), leaves(pair, name, 1), strict=True):
            np.testing.assert_array_equal(one, other)


def test_predictions_come_in_order_for_every_item(pair, tiny_model, tiny_variables):
    images = np.random.default_rng(0).standard_normal((21, 8, 8, 1)).astype(np.float32)
    wanted = Predictor(tiny_model, Parallel())(tiny_variables, {"image": images}, 6)
    for process in (0, 1):
        (found,) = leaves(pair, "logits", process)
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("search", searched.OPTIONS, ids=searched.names)
def test_two_processes_search_as_one_does_to_the_bit_and_share_the_rows(pair, search):
    rng = np.random.default_rng(0)
    stored = searched.SharedRows(rng, 12, search)
    wanted = jax.tree.leaves(searched.find(stored.child(rng), stored.stored, search))
    for process in (0, 1):
        for found, exact in zip(leaves(pair, searched.names(search), process), wanted, strict=True):
            np.testing.assert_array_equal(found, exact)
    told = [json.loads((pair / f"sketches-{process}.json").read_text()) for process in (0, 1)]
    evens, odds = (one[searched.names(search)] for one in told)
    assert sorted(evens + odds) == sorted(stored.sketches) and all(one % 2 for one in odds)
    assert not any(one % 2 for one in evens)


def test_one_that_is_asked_to_stop_stops_both_where_both_go_on(pair):
    told = [json.loads((pair / f"told-{process}.json").read_text())[-1] for process in (0, 1)]
    assert told[0] == told[1] and "stopped in its soft stage, epoch 8 of 12" in told[0]
    for process in (0, 1):
        for found, wanted in zip(leaves(pair, "went_on", process), leaves(pair, "trained", 0), strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_process_0_alone_writes_the_pool_and_both_see_it(pair):
    told = [json.loads((pair / f"told-{process}.json").read_text()) for process in (0, 1)]
    assert [one[0] for one in told] == ["a@1", "a@1"] and Pool.open(pair / "pool").tasks == ("a",)
    assert (pair / "pool-0").exists() and not (pair / "pool-1").exists()
    again, unshared = zip(*(one[1:3] for one in told), strict=True)
    assert again[0].endswith("there is a pool already; open it, or name another folder")
    assert again[1] == f"process 0: {again[0]}"
    assert unshared[0] == "" and unshared[1].startswith("process 1 does not see that the pool is made")


def test_what_cannot_be_is_one_line_in_both(pair):
    for process in (0, 1):
        differing, batch, pmap, one, none, _ = json.loads((pair / f"told-{process}.json").read_text())[3:]
        assert (one, none) == (1, 0)
        assert differing == (
            "process 1 differs from process 0 at the start in: config.seed; start all processes with the "
            "same command, code, packages and data"
        )
        assert batch == "config.batch_size = 12: must be a multiple of the 8 devices"
        assert pmap.startswith("config.parallel = 'pmap': serves one process, and there are 2")


def test_a_coordinator_that_does_not_answer_is_one_line():
    started = "from cwps_jax import distributed; distributed.start('localhost:%d', 2, 1, seconds=2)"
    done = subprocess.run(
        [sys.executable, "-c", started % free_port()], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 2
    assert done.stderr.startswith("cwps: coordinator localhost:") and done.stderr.count("\n") == 1
    assert "not all processes came within 2 s" in done.stderr


def test_a_process_that_is_killed_ends_the_other_which_says_so():
    """Process 0, which has the coordinator, in one pair; process 1 in another, at the same time."""
    program = (
        "import time; from cwps_jax import distributed; distributed.HEARTBEAT_SECONDS = 4; "
        "distributed.start('localhost:%d', 2, %d, seconds=60); distributed.agree('at the start', {}); "
        "print('started', flush=True); time.sleep(%d); distributed.agree('later', {})"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": ENVIRONMENT}
    pairs = []
    for killed in (0, 1):
        port = free_port()
        commands = [program % (port, process, sleeps) for process, sleeps in ((killed, 60), (1 - killed, 0))]
        pairs.append([subprocess.Popen([sys.executable, "-c", one], **pipes) for one in commands])
    try:
        for victim, survivor in pairs:
            assert victim.stdout.readline() == survivor.stdout.readline() == "started\n"
            victim.kill()
        for _, survivor in pairs:
            _, errors = survivor.communicate(timeout=60)
            assert survivor.returncode not in (0, 42)
            assert any(words in errors for words in ("another task died", "process 0 is lost"))
    finally:
        for one in (one for pair in pairs for one in pair):
            one.kill()
            one.communicate()


@pytest.mark.slow
def test_one_may_come_to_its_first_step_half_a_minute_after_the_other(tmp_path):
    """Gloo's own limit is 30 seconds, at the first exchange."""
    program = str(HERE / "late_process.py")
    ended = two_processes(lambda port, process: [program, str(port), str(process), str(tmp_path)])
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert ended[0][1].splitlines()[-1] == ended[1][1].splitlines()[-1]  # beside what Gloo tells
    assert Pool.open(tmp_path / "pool").tasks == ("noise",)


def test_processes_of_other_configs_stop_before_anything_is_written(tmp_path):
    def command(port, process):
        where = [f"--coordinator=localhost:{port}", "--processes=2", f"--process={process}"]
        flags = ["--config.epochs=3", "--config.batch_size=64", f"--config.seed={process}"]
        cache = f"--config.cache_dir={tmp_path / 'cache'}"
        flags_of_main = ["-m", "cwps_jax.main", "--config=configs/digits.py", f"--workdir={tmp_path / 'w'}"]
        return [*flags_of_main, cache, "--config.tasks=('negative',)", *flags, *where]

    for status, _, errors in two_processes(command):
        assert status == 2, errors
        lines = [line for line in errors.splitlines() if line.startswith("cwps: ")]
        assert len(lines) == 1 and "process 1 differs from process 0 at the start in: config.seed" in lines[0]
        assert "Traceback" not in errors
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"_COORDINATOR": "localhost:1"}, "--coordinator=HOST:PORT, --processes=N and --process=I belong"),
        (
            {"_DISTRIBUTED": True, "_PROCESS": 1},
            "--coordinator=HOST:PORT, --processes=N and --process=I belong",
        ),
        (
            {"_COORDINATOR": "localhost:1", "_PROCESSES": 2, "_PROCESS": 2},
            "--process=2: must be below --processes=2; they count from 0",
        ),
    ],
)
def test_flags_of_distribution_belong_together(monkeypatch, given, line):
    alone = {"_COORDINATOR": "", "_PROCESSES": 0, "_PROCESS": -1, "_DISTRIBUTED": False}
    for flag, value in {**alone, **given}.items():
        monkeypatch.setattr(main, flag, SimpleNamespace(value=value))
    with pytest.raises(CwpsError) as told:
        main._connect()
    assert str(told.value).startswith(line)


@pytest.mark.slow
def test_a_whole_run_of_two_processes_of_four_devices_leaves_the_pool_of_one_of_eight(tmp_path):
    """To the bit, where the one has a coordinator, too: both sum by Gloo, in the order of the devices."""

    def command(workdir, *flags):
        small = ["epochs=3", "source_epochs=1", "shots=32", "batch_size=64", "metrics=('jsonl',)"]
        caches = [
            f"--config.cache_dir={tmp_path}",
            f"--config.compilation_cache={ENVIRONMENT['CWPS_TEST_CACHE']}",
        ]
        flags_of_main = [
            "-m",
            "cwps_jax.main",
            "--config=configs/digits.py",
            f"--workdir={tmp_path / workdir}",
        ]
        return [
            *flags_of_main,
            "--config.tasks=('negative','loops')",
            "--config.compare=()",
            *(f"--config.{one}" for one in small),
            *caches,
            *flags,
        ]

    def devices(count):
        # Little optimisation, and as many threads, for both: they would round otherwise.
        return compiling.environment(devices=count, PYTHONPATH=str(HERE.parent), NPROC="8")

    def where(port, process, processes=2):
        return f"--coordinator=localhost:{port}", f"--processes={processes}", f"--process={process}"

    alone = [sys.executable, *command("one", *where(free_port(), 0, 1))]
    done = subprocess.run(alone, env=devices(8), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pair = two_processes(lambda *given: command("two", *where(*given)), devices(4))
    assert [status for status, *_ in pair] == [0, 0], pair
    pools = [Pool.open(tmp_path / run / "pool") for run in ("one", "two")]
    one, two = (
        [(each.name, each.own_sha256, each.rows_sha256) for each in pool.index.versions] for pool in pools
    )
    assert one == two and len(one) == 2
    assert pools[0].index.pretrained_sha256 == pools[1].index.pretrained_sha256
    results = [json.loads((tmp_path / run / "results.json").read_text()) for run in ("one", "two")]
    for one, two in zip(*(each["forgetting"] for each in results), strict=True):
        assert one["logits_sha256_at_end"] == two["logits_sha256_at_end"]
    assert len((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()) == 1 + 3 + 3
    assert "relation.png" in pair[0][1] and pair[1][1].replace("[Gloo]", "").count("accuracy") == 0


@pytest.mark.parametrize(
    ("error", "line", "status"),
    [
        (ProcessLost("process 0 is lost (closed)"), "process 0 is lost (closed)", 134),
        (
            jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed:\n Timed out waiting 30000ms"),
            "another process does not answer in a step (UNKNOWN: Gloo all-reduce failed: Timed out",
            134,
        ),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), "JaxRuntimeError(", 1),
        (CwpsError("wrong"), "wrong", 2),
    ],
)
def test_a_lost_peer_has_the_status_of_an_abort(monkeypatch, capsys, error, line, status):
    def failing(main, flags_parser):
        raise error

    told = []
    monkeypatch.setattr(command_line.app, "run", failing)
    monkeypatch.setattr(distributed, "many", lambda: True)
    monkeypatch.setattr(distributed, "fail", lambda line, status: told.append(status))
    with pytest.raises(SystemExit) as end:
        command_line.run(lambda config: None)
    assert end.value.code == status and told == [status]
    assert f"cwps: {line}" in capsys.readouterr().err
