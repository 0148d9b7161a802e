"""Weights & Biases as a place for metrics."""

import os
import pathlib
import secrets
from collections.abc import Mapping
from typing import Any

from cwps_jax.errors import CwpsError
from cwps_jax.report.metric_writer import numbers
from cwps_jax.report.tracker_runs import LONGEST_END, PROJECT, known_run, remember_run
from cwps_jax.train.records import Progress


class WeightsAndBiases:
    """A run of Weights & Biases for each workdir; a later run of the workdir continues it.

    Its own environment variables choose the place: WANDB_MODE=offline writes only to files in wandb/ of the
    workdir; WANDB_PROJECT and WANDB_ENTITY name the project. A process of its own sends the numbers, so
    training never waits for it.

    Args:
        workdir: of the run.
        told: its config.

    Raises:
        CwpsError: there is no login, or the service refuses.
    """

    def __init__(self, workdir: pathlib.Path, told: Mapping[str, Any]) -> None:
        import wandb

        run = known_run(workdir, "wandb") or secrets.token_hex(4)
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=workdir.name,
                dir=workdir,
                id=run,
                resume="allow",
                config=dict(told),
                allow_val_change=True,  # the same workdir may be called with another budget
                settings=wandb.Settings(console="off", silent=True, finish_timeout=LONGEST_END),
            )
        except wandb.Error as error:
            raise CwpsError(
                f"config.metrics names 'wandb', which cannot start: {' '.join(str(error).split())}; log in, "
                "set WANDB_MODE=offline, or take the name out"
            ) from error
        remember_run(workdir, "wandb", run)
        # Epochs begin anew with each task: they are an axis, not W&B's own step, which may only grow.
        self._run.define_metric("*", step_metric="epoch")

    def write(self, task: str, progress: Progress) -> None:
        self._run.log({"epoch": progress.epoch, **numbers(task, progress)})

    def close(self) -> None:
        import wandb

        self._run.finish()
        # Waits for its process too, which may still be writing: main becomes another program after this.
        wandb.teardown()
