"""Two processes on this machine do what one does; and what is told where they cannot."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import searched
from stages import run_stages

from cwps_jax import command_line, distributed
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
    """The folder in which two processes left what they found."""
    folder = tmp_path_factory.mktemp("pair")
    done = two_processes(
        lambda port, process: [str(HERE / "one_of_many.py"), str(port), str(process), str(folder)]
    )
    for status, _, errors in done:
        assert status == 0, errors
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
            np.testing.assert_allclose(found, wanted, rtol=0, atol=0 if exact else 1e-5)


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


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_is_killed_ends_the_other_which_says_so(killed):
    program = (
        "import time; from cwps_jax import distributed; distributed.HEARTBEAT_SECONDS = 4; "
        "distributed.start('localhost:%d', 2, %d, seconds=60); distributed.agree('at the start', {}); "
        "print('started', flush=True); time.sleep(%d); distributed.agree('later', {})"
    )
    port = free_port()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": ENVIRONMENT}
    victim, survivor = (
        subprocess.Popen([sys.executable, "-c", program % (port, process, sleeps)], **pipes)
        for process, sleeps in ((killed, 60), (1 - killed, 0))
    )
    try:
        assert victim.stdout.readline() == survivor.stdout.readline() == "started\n"
        victim.kill()
        _, errors = survivor.communicate(timeout=30)
    finally:
        victim.kill()
        survivor.kill()
        victim.communicate()
    assert survivor.returncode not in (0, 42)
    assert any(words in errors for words in ("another task died", "process 0 is lost"))


def test_processes_of_other_configs_stop_before_anything_is_written(tmp_path):
    def command(port, process):
        where = [f"--coordinator=localhost:{port}", "--processes=2", f"--process={process}"]
        flags = ["--config.epochs=3", "--config.batch_size=64", f"--config.seed={process}"]
        cache = f"--config.cache_dir={tmp_path / 'cache'}"
        main = ["-m", "cwps_jax.main", "--config=configs/digits.py", f"--workdir={tmp_path / 'w'}"]
        return [*main, cache, "--config.tasks=('negative',)", *flags, *where]

    for status, _, errors in two_processes(command):
        assert status == 2, errors
        lines = [line for line in errors.splitlines() if line.startswith("cwps: ")]
        assert len(lines) == 1 and "process 1 differs from process 0 at the start in: config.seed" in lines[0]
        assert "Traceback" not in errors
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("flags", [["--coordinator=localhost:1"], ["--distributed", "--process=1"]])
def test_flags_of_distribution_belong_together(tmp_path, flags):
    main = ["-m", "cwps_jax.main", "--config=configs/digits.py", f"--workdir={tmp_path / 'w'}"]
    done = subprocess.run([sys.executable, *main, *flags], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 2 and done.stderr.startswith("cwps: --coordinator=HOST:PORT, --processes=N and")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_whole_run_of_two_processes_leaves_the_pool_of_one(tmp_path):
    """Of two devices: two numbers have one sum, while more are summed in another order."""

    def command(workdir, *flags):
        small = [
            "--config.epochs=3",
            "--config.source_epochs=1",
            "--config.shots=32",
            "--config.batch_size=64",
        ]
        caches = [
            f"--config.cache_dir={tmp_path}",
            f"--config.compilation_cache={ENVIRONMENT['CWPS_TEST_CACHE']}",
        ]
        main = ["-m", "cwps_jax.main", "--config=configs/digits.py", f"--workdir={tmp_path / workdir}"]
        return [*main, "--config.tasks=('negative','loops')", "--config.compare=()", *small, *caches, *flags]

    def devices(count):
        # Little optimisation, for both: other programs would round otherwise.
        flags = f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={count}"
        return {**ENVIRONMENT, "XLA_FLAGS": flags}

    done = subprocess.run([sys.executable, *command("one")], env=devices(2), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    where = lambda port, process: (f"--coordinator=localhost:{port}", "--processes=2", f"--process={process}")
    pair = two_processes(lambda *given: command("two", *where(*given)), devices(1))
    assert [status for status, *_ in pair] == [0, 0], pair
    hashes = [
        [
            (one.name, one.own_sha256, one.rows_sha256)
            for one in Pool.open(tmp_path / run / "pool").index.versions
        ]
        for run in ("one", "two")
    ]
    assert hashes[0] == hashes[1] and len(hashes[0]) == 2
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
