"""Command line: ``python -m cwps_jax.main --config configs/digits.py --workdir runs/digits``.

Parses flags and config, starts JAX, and dispatches. After the last task is learned, the process replaces
itself by a fresh one, which measures the models that the pool really holds. If there are several processes,
each is replaced, and the fresh ones connect again, because a host of a pod cannot compute alone.
"""

import os
import pathlib
import sys

from absl import flags

from cwps_jax import command_line, distributed
from cwps_jax.buckets import is_address
from cwps_jax.compilation_cache import start_jax
from cwps_jax.config import RunConfig
from cwps_jax.errors import CwpsError, Preempted
from cwps_jax.stop_signals import GRACE, stop_signals
from cwps_jax.workdir import check_workdir, opened_workdir

_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run's results, or a gs:// or s3:// address; by default runs/ and the config file's name.",
)
_FINISH = flags.DEFINE_bool(
    "finish", False, "Learn nothing: measure the workdir's pool and write results.json and report/ again."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Be one of many processes, which JAX finds on TPU, Slurm, Open MPI and Kubernetes."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "HOST:PORT of process 0, where JAX does not find the many processes by itself."
)
_PROCESSES = flags.DEFINE_integer("processes", 0, "How many processes there are, with --coordinator.")
_PROCESS = flags.DEFINE_integer("process", -1, "Which of them this is, from 0, with --coordinator.")


def main(config: RunConfig) -> None:
    """Learns the config's tasks, then measures them in a fresh process."""
    given = _WORKDIR.value or str(pathlib.Path("runs", command_line.config_name()))
    check_workdir(given)
    _connect()
    start_jax(config)

    from rich.console import Console

    from cwps_jax import run
    from cwps_jax.finish import finish

    # A log file has no width of its own: keep the table whole there.
    console = Console(width=None if sys.stdout.isatty() else 120, quiet=not distributed.first())
    if _FINISH.value:
        with stop_signals(command_line.PREEMPTED, grace=0), opened_workdir(given) as workdir:
            finish(config, workdir, console)
        if is_address(given):
            console.print(f"The run is in {given}", soft_wrap=True, highlight=False)
        distributed.stop()
        return
    grace = GRACE if config.save_minutes else 0
    with stop_signals(command_line.PREEMPTED, grace) as stopping, opened_workdir(given) as workdir:
        run.learn(config, workdir, console, stopping)
        if distributed.largest(stopping()):
            raise Preempted("stopped when all tasks were learned; the same command measures them")
    distributed.stop()
    sys.stdout.flush()
    sys.stderr.flush()
    command = [sys.executable, "-m", "cwps_jax.main", *sys.argv[1:], "--finish", f"--workdir={given}"]
    os.execv(sys.executable, command)


def _connect() -> None:
    """Connects this process with the others that the flags name; without such flags it does nothing."""
    given = (_COORDINATOR.value != "", _PROCESSES.value > 0, _PROCESS.value >= 0)
    if (_DISTRIBUTED.value and any(given)) or any(given) != all(given):
        raise CwpsError(
            "--coordinator=HOST:PORT, --processes=N and --process=I belong together: give all three, or "
            "--distributed alone where JAX finds the cluster by itself"
        )
    if all(given):
        if _PROCESS.value >= _PROCESSES.value:
            raise CwpsError(
                f"--process={_PROCESS.value}: must be below --processes={_PROCESSES.value}; they count from 0"
            )
        distributed.start(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    elif _DISTRIBUTED.value:
        distributed.start()


def run() -> None:
    """Entry point of ``cwps`` and ``python -m cwps_jax.main``."""
    command_line.run(main)


if __name__ == "__main__":
    run()
