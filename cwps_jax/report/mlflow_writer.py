"""MLflow as a place for metrics."""

import os
import pathlib
import re
import threading
import time
from collections.abc import Mapping
from typing import Any

from absl import logging

from cwps_jax.errors import CwpsError
from cwps_jax.report.metric_writer import numbers
from cwps_jax.report.tracker_runs import LONGEST_END, PROJECT, known_run, remember_run
from cwps_jax.train.records import Progress

_REFUSED = re.compile(r"[^/\w.\- :]")  # characters that the name of a metric may not have there


class MlFlow:
    """A run of MLflow for each workdir; a later run of the workdir continues it.

    MLflow's own environment variables choose the place: MLFLOW_TRACKING_URI, a server or a database, or files
    in mlflow/ of the workdir if it is not set, and MLFLOW_EXPERIMENT_NAME. A thread of its own sends the
    numbers, so training never waits for it; epochs that were not sent are reported at the end.

    Args:
        workdir: of the run.
        told: its config, stored as config.json.

    Raises:
        CwpsError: the store cannot be reached or written to.
    """

    def __init__(self, workdir: pathlib.Path, told: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        if not uri:
            uri = (workdir / "mlflow").absolute().as_uri()
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # it asks whether files are meant
        try:
            self._client = MlflowClient(tracking_uri=uri)
            self._run = known_run(workdir, f"mlflow at {uri}") or self._new_run(workdir.name)
            self._client.update_run(self._run, status="RUNNING")
            self._client.log_dict(self._run, dict(told), "config.json")
        except MlflowException as error:
            raise CwpsError(
                f"config.metrics names 'mlflow', which cannot start at {uri}: "
                f"{' '.join(str(error).split())}; set another MLFLOW_TRACKING_URI, or take the name out"
            ) from error
        remember_run(workdir, f"mlflow at {uri}", self._run)
        self._sent: list[Any] = []

    def write(self, task: str, progress: Progress) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        batch = [
            Metric(_REFUSED.sub("_", name), number, now, progress.epoch)
            for name, number in numbers(task, progress).items()
        ]
        self._sent.append(self._client.log_batch(self._run, metrics=batch, synchronous=False))

    def close(self) -> None:
        failed: list[str] = []
        # In a thread, which can be left: a server that is gone is asked again for minutes.
        ending = threading.Thread(target=self._end, args=(failed,), daemon=True)
        ending.start()
        ending.join(LONGEST_END)
        if ending.is_alive():
            failed.append(f"no answer within {LONGEST_END} s")
        if failed:
            logging.warning("mlflow did not take all epochs of this run: %s", failed[0])

    def _end(self, failed: list[str]) -> None:
        from mlflow.exceptions import MlflowException

        for call in (*(sent.wait for sent in self._sent), lambda: self._client.set_terminated(self._run)):
            try:
                call()
            except MlflowException as error:
                failed.append(" ".join(str(error).split()))

    def _new_run(self, name: str) -> str:
        wanted = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(wanted)
        experiment = found.experiment_id if found else self._client.create_experiment(wanted)
        return self._client.create_run(experiment, run_name=name).info.run_id
