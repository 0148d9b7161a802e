"""Command line: ``python -m cwps_jax.main --config configs/digits.py --workdir runs/digits``.

Parses flags and config, starts JAX, dispatches. After the last task is learned the process replaces itself
with a fresh one, which measures what the pool really holds.
"""

import os
import pathlib
import sys
import tempfile

from absl import flags, logging

from cwps_jax import command_line
from cwps_jax.config import RunConfig

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
    _start_jax(config)

    from rich.console import Console

    from cwps_jax import run

    # A log file has no width of its own: keep the table whole there.
    console = Console(width=None if sys.stdout.isatty() else 120)
    if _FINISH.value:
        run.finish(config, workdir, console)
        return
    run.learn(config, workdir, console)
    sys.stdout.flush()
    sys.stderr.flush()
    command = [sys.executable, "-m", "cwps_jax.main", *sys.argv[1:], "--finish", f"--workdir={workdir}"]
    os.execv(sys.executable, command)


def _start_jax(config: RunConfig) -> None:
    import jax

    if config.compilation_cache:
        folder = os.path.expanduser(config.compilation_cache)
        try:
            os.makedirs(folder, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            logging.warning(
                "config.compilation_cache = %r: cannot be written to (%s); going on without it",
                config.compilation_cache,
                error.strerror,
            )
            return
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def run() -> None:
    """Entry point of ``cwps`` and ``python -m cwps_jax.main``."""
    command_line.run(main)


if __name__ == "__main__":
    run()
