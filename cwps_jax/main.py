"""Command line: ``python -m cwps_jax.main --config configs/digits.py --workdir runs/digits``.

Parses flags and config, starts JAX, dispatches. After the last task is learned the process replaces itself
with a fresh one, which measures what the pool really holds.
"""

import os
import pathlib
import sys

from absl import flags

from cwps_jax import command_line
from cwps_jax.config import RunConfig
from cwps_jax.errors import Preempted
from cwps_jax.stop_signals import GRACE, stop_signals

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run's results; by default runs/ and the name of the config file."
)
_FINISH = flags.DEFINE_bool(
    "finish", False, "Learn nothing: measure the workdir's pool and write results.json and report/ anew."
)


def main(config: RunConfig) -> None:
    """Learns the config's tasks, then measures them in a fresh process."""
    workdir = pathlib.Path(_WORKDIR.value or pathlib.Path("runs", command_line.config_name()))
    command_line.check_folder("workdir", workdir)
    command_line.start_jax(config)

    from rich.console import Console

    from cwps_jax import run

    # A log file has no width of its own: keep the table whole there.
    console = Console(width=None if sys.stdout.isatty() else 120)
    if _FINISH.value:
        with stop_signals(command_line.PREEMPTED, grace=0):
            run.finish(config, workdir, console)
        return
    with stop_signals(command_line.PREEMPTED, GRACE if config.save_minutes else 0) as stopping:
        run.learn(config, workdir, console, stopping)
        if stopping():
            raise Preempted("stopped when all tasks were learned; the same command measures them")
    sys.stdout.flush()
    sys.stderr.flush()
    command = [sys.executable, "-m", "cwps_jax.main", *sys.argv[1:], "--finish", f"--workdir={workdir}"]
    os.execv(sys.executable, command)


def run() -> None:
    """Entry point of ``cwps`` and ``python -m cwps_jax.main``."""
    command_line.run(main)


if __name__ == "__main__":
    run()
