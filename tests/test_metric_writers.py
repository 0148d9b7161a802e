"""Places for the numbers of every epoch: what was written is read back, also of a run that was killed."""

import contextlib
import importlib.util
import json
import os
import pathlib
import struct
import subprocess
import sys
import time

import pytest
from rich.console import Console

from cwps_jax import config
from cwps_jax.errors import CwpsError
from cwps_jax.report import metrics
from cwps_jax.report.metric_writer import JsonLines
from cwps_jax.report.progress import RunProgress
from cwps_jax.train.records import Progress

TRACKERS = [
    pytest.param(name, marks=pytest.mark.skipif(not installed, reason=f"{name} is not installed"))
    for name in ("wandb", "mlflow")
    for installed in [importlib.util.find_spec(name)]
]
EVERYWHERE = ["tensorboard", "jsonl", *TRACKERS]


def epoch(number: int) -> Progress:
    """Numbers that float32 has exactly, as TensorBoard keeps them."""
    return Progress("cwps", "soft", number, 8, False, 1 / 2**number, number / 8, 0.5, 0.25, 1.5)


@pytest.fixture(autouse=True)
def nothing_is_sent(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("HOME", str(tmp_path))  # no login of who runs the tests


def read(name: str, workdir: pathlib.Path) -> dict[str, list[tuple[int, float]]]:
    """Returns {curve: [(epoch, number)]} of what was written, by each place's own format."""
    found: dict[str, list[tuple[int, float]]] = {}
    for tag, step, number in READERS[name](workdir):
        found.setdefault(tag, []).append((step, number))
    return found


def read_tensorboard(workdir):
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted((workdir / "tensorboard").iterdir()):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += length + 16
            yield from ((value.tag, event.step, value.simple_value) for value in event.summary.value)


def read_jsonl(workdir):
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for name in ("loss", "metric", "private", "lambda_"):
            yield f"{row['task']}/{row['method']}/{name.rstrip('_')}", row["epoch"], row[name]


def read_wandb(workdir):
    from wandb.proto.wandb_internal_pb2 import Record

    for file in sorted((workdir / "wandb").glob("offline-run-*/*.wandb")):
        for record in map(Record.FromString, leveldb_records(file.read_bytes()[7:], 7)):
            items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            for key in items.keys() - {"epoch"}:
                if not key.startswith("_"):
                    yield key, int(items["epoch"]), float(items[key])


def leveldb_records(content: bytes, at: int):
    """Yields the records of a LevelDB log whose first byte lies at `at` of its first block."""
    whole, start = b"", at
    while at - start + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # too little for a header: filled up
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at - start)
        whole += content[at - start + 7 : at - start + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield whole
            whole = b""


def read_mlflow(workdir):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(workdir / "mlflow").absolute().as_uri())
    [experiment] = [one for one in client.search_experiments() if one.name == "cwps_jax"]
    [run] = client.search_runs([experiment.experiment_id])
    for key in run.data.metrics:
        yield from (
            (key, point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)
        )


READERS = {
    "tensorboard": read_tensorboard,
    "jsonl": read_jsonl,
    "wandb": read_wandb,
    "mlflow": read_mlflow,
}


def write(name: str, workdir: pathlib.Path, *epochs: int) -> None:
    workdir.mkdir(exist_ok=True)
    [writer] = metrics.open_writers([name], workdir, {"budget": 0.4})
    for number in epochs:
        writer.write("birds", epoch(number))
    writer.close()


def assert_has(found: dict, *epochs: int) -> None:
    curves = {
        "birds/cwps/loss": [(number, 1 / 2**number) for number in epochs],
        "birds/cwps/metric": [(number, number / 8) for number in epochs],
        "birds/cwps/private": [(number, 0.5) for number in epochs],
        "birds/cwps/lambda": [(number, 0.25) for number in epochs],
    }
    assert found == curves


def test_every_place_that_the_config_knows_has_a_writer():
    assert tuple(metrics.WRITERS) == config.METRICS


@pytest.mark.parametrize("name", EVERYWHERE)
def test_what_was_written_is_there_also_after_a_second_run(name, tmp_path):
    write(name, tmp_path / "run", 1, 2)
    assert_has(read(name, tmp_path / "run"), 1, 2)
    write(name, tmp_path / "run", 3)  # of the process that resumes: the same run for a tracker
    assert_has(read(name, tmp_path / "run"), 1, 2, 3)


KILLED = """
import pathlib, sys, time
from cwps_jax.report import metrics
from tests.test_metric_writers import epoch
[writer] = metrics.open_writers([sys.argv[1]], pathlib.Path(sys.argv[2]), {})
writer.write("birds", epoch(1))
writer.write("birds", epoch(2))
time.sleep(60)
"""


def has(name: str, workdir: pathlib.Path, *epochs: int) -> bool:
    """Whether that is there already; a file that is not there yet, or half written, has nothing."""
    with contextlib.suppress(Exception):
        assert_has(read(name, workdir), *epochs)
        return True
    return False


@pytest.mark.parametrize("name", EVERYWHERE)
def test_a_killed_run_leaves_what_it_wrote(name, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    root = pathlib.Path(__file__).parent.parent
    # W&B writes its file every 15 s by default.
    variables = {**os.environ, "PYTHONPATH": str(root), "WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL": "0.1"}
    command = [sys.executable, "-c", KILLED, name, str(workdir)]
    with subprocess.Popen(command, env=variables, cwd=root) as running:
        deadline = time.monotonic() + 50
        while not has(name, workdir, 1, 2) and time.monotonic() < deadline:
            time.sleep(0.1)
        running.kill()
    assert_has(read(name, workdir), 1, 2)


def test_a_line_that_was_torn_is_written_over(tmp_path):
    write("jsonl", tmp_path, 1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"task": "birds", "lo')
    write("jsonl", tmp_path, 2)
    assert_has(read("jsonl", tmp_path), 1, 2)


def test_a_line_has_all_that_is_known_of_an_epoch(tmp_path):
    writer = JsonLines(tmp_path)
    writer.write("birds", epoch(1))
    [line] = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line).keys() >= {"task", "stage", "epochs", "last_of_stage", "seconds_per_epoch"}
    writer.close()


def test_progress_writes_every_epoch_everywhere_and_closes(tmp_path):
    class Kept:
        def __init__(self):
            self.told, self.closed = [], False

        def write(self, task, progress):
            self.told.append((task, progress.epoch))

        def close(self):
            self.closed = True

    places = [Kept(), Kept()]
    with pytest.raises(KeyboardInterrupt), RunProgress(places, 8, Console(quiet=True)) as progress:
        progress.epoch("birds", epoch(1))
        progress.epoch("birds", epoch(2))
        raise KeyboardInterrupt
    for place in places:
        assert place.told == [("birds", 1), ("birds", 2)]
        assert place.closed


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_package_that_is_not_there_is_one_line(name, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(CwpsError, match=rf"{name}.*not installed here: pip install 'cwps_jax\[{name}\]'"):
        metrics.open_writers(["jsonl", name], tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_place_is_refused_with_the_nearest():
    given = {**config.default_config().to_dict(), "tasks": ("birds",), "source": "birds"}
    with pytest.raises(CwpsError, match="config.metrics names 'wanb'.*did you mean 'wandb'"):
        config.run_config({**given, "metrics": ("jsonl", "wanb")})
    assert config.run_config({**given, "metrics": ()}).metrics == ()


@pytest.mark.parametrize("name", TRACKERS[:1])
def test_without_a_login_to_wandb_there_is_one_line(name, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(CwpsError, match="'wandb', which cannot start: .*WANDB_MODE=offline") as caught:
        metrics.open_writers([name], tmp_path, {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", TRACKERS[1:])
def test_a_store_of_mlflow_that_cannot_be_used_is_one_line(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://mine")
    with pytest.raises(CwpsError, match="'mlflow', which cannot start at nowhere://mine") as caught:
        metrics.open_writers([name], tmp_path, {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", TRACKERS[1:])
def test_a_task_may_be_called_what_mlflow_would_refuse(name, tmp_path):
    [writer] = metrics.open_writers([name], tmp_path, {})
    writer.write("birds (2011)", epoch(1))
    writer.close()
    assert set(read(name, tmp_path)) >= {"birds _2011_/cwps/loss"}


class NeverTaken:
    """Of an epoch that was sent to a server which is gone: it is tried again and again, or given up."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def wait(self) -> None:
        from mlflow.exceptions import MlflowException

        time.sleep(self.seconds)
        raise MlflowException("connection\nrefused")


@pytest.mark.parametrize(("seconds", "told"), [(0, "connection refused"), (60, "no answer within 0.2 s")])
@pytest.mark.parametrize("name", TRACKERS[1:])
def test_the_end_of_a_run_waits_no_longer_for_mlflow(name, seconds, told, tmp_path, monkeypatch, caplog):
    from cwps_jax.report import mlflow_writer

    monkeypatch.setattr(mlflow_writer, "LONGEST_END", 0.2 if seconds else 10)
    [writer] = metrics.open_writers([name], tmp_path, {})
    writer._sent.append(NeverTaken(seconds))
    began = time.monotonic()
    writer.close()
    assert time.monotonic() - began < 5
    [line] = [record.getMessage() for record in caplog.records if record.name == "absl"]
    assert told in line and "\n" not in line
