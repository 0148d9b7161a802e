"""The protocol of a place for the numbers of every epoch, and the two that are files of the workdir."""

import dataclasses
import json
import math
import pathlib
import time
from typing import Protocol

from cwps_jax.train.records import Progress


class MetricWriter(Protocol):
    """Writes the numbers of every epoch to one place."""

    def write(self, task: str, progress: Progress) -> None:
        """Writes an epoch of a task. Within seconds it is safe even if the process is killed."""

    def close(self) -> None:
        """Writes the numbers that are still buffered."""


def numbers(task: str, progress: Progress) -> dict[str, float]:
    """Returns the numbers that are drawn as curves over the epochs: {"<task>/<method>/<name>": number}.

    A metric of a `whole_split` is not among them, because a batch has no value of it.
    """
    fields = ("loss", "metric", "private", "lambda_")
    known = {name: value for name in fields if not math.isnan(value := getattr(progress, name))}
    return {f"{task}/{progress.method}/{name.rstrip('_')}": value for name, value in known.items()}


class JsonLines:
    """metrics.jsonl: a line for each epoch, with all of its numbers.

    Args:
        workdir: folder of the file; lines are appended after its last whole line.
    """

    def __init__(self, workdir: pathlib.Path) -> None:
        self._file = (workdir / "metrics.jsonl").open("ab+")
        self._file.seek(0)
        self._file.truncate(self._file.read().rfind(b"\n") + 1)  # a full disk may have torn the last line

    def write(self, task: str, progress: Progress) -> None:
        row = {"task": task, **dataclasses.asdict(progress)}
        if math.isnan(progress.metric):
            row["metric"] = None  # JSON has no nan
        self._file.write((json.dumps(row) + "\n").encode())
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """TensorBoard's event files, in tensorboard/ of the workdir: one for each process that wrote."""

    def __init__(self, workdir: pathlib.Path) -> None:
        from tensorboardX import SummaryWriter

        # A file is called by the second alone: a process that resumes at once would write over it.
        suffix = f".{time.time_ns()}"
        # Its thread writes; its own flush() would not wait for what is still on the way there.
        self._events = SummaryWriter(str(workdir / "tensorboard"), flush_secs=2, filename_suffix=suffix)

    def write(self, task: str, progress: Progress) -> None:
        for tag, number in numbers(task, progress).items():
            self._events.add_scalar(tag, number, progress.epoch)

    def close(self) -> None:
        self._events.close()
