"""Command line: ``python -m cwps_jax.main --config configs/digits.py --workdir runs/digits``.

Parses flags and config, starts JAX, dispatches. After the last task is learned the process replaces itself
with a fresh one, which measures what the pool really holds.
"""

import os
import pathlib
import sys
import traceback
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from cwps_jax.config import RunConfig, run_config, unknown_key
from cwps_jax.errors import CwpsError

_CONFIG = config_flags.DEFINE_config_file("config", None, "The run's config file.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run's results; by default runs/ and the name of the config file."
)
_FINISH = flags.DEFINE_bool(
    "finish", False, "Learn nothing: measure the workdir's pool and write results.json and report/ anew."
)
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error in what was given.")


def main(argv: Sequence[str]) -> None:
    """Learns the config's tasks, then measures them in a fresh process."""
    if len(argv) > 1:
        raise CwpsError(f"{argv[1]!r} is not a flag; give the config as --config=FILE")
    config = _read_config()
    workdir = pathlib.Path(_WORKDIR.value or _default_workdir())
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


def _read_config() -> RunConfig:
    if _CONFIG.value is None:
        raise CwpsError("no config: give one, e.g. --config=configs/digits.py")
    try:
        return run_config(_CONFIG.value.to_dict())
    except OSError as error:  # a file that could not be read fails when its first value is asked for
        raise CwpsError(f"--config: no such file: {_given_config(sys.argv)}") from error


def _default_workdir() -> str:
    file = config_flags.get_config_filename(flags.FLAGS["config"])
    return os.path.join("runs", pathlib.Path(file.split(":")[0]).stem)


def _start_jax(config: RunConfig) -> None:
    import jax

    if not _DEBUG.value:
        logging.set_verbosity(logging.WARNING)  # Orbax tells of every file at INFO
    if config.compilation_cache:
        folder = os.path.expanduser(config.compilation_cache)
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses the flags; everything that can be wrong in them or in the config file is one line."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        raise CwpsError(str(error)) from error
    except (AttributeError, KeyError) as error:
        known = RunConfig.__dataclass_fields__
        keys = [part.split("=")[0][9:] for part in argv if part.startswith("--config.")]
        unknown = [key for key in keys if key not in known]
        line = unknown_key(unknown[0], known) if unknown else f"--config: {_given_config(argv)}: {error}"
        raise CwpsError(" ".join(line.split())) from error
    except OSError as error:
        raise CwpsError(f"--config: no such file: {_given_config(argv)}") from error
    except (TypeError, ValueError, SyntaxError, ImportError) as error:
        raise CwpsError(f"--config: {_given_config(argv)}: {error}") from error


def _given_config(argv: Sequence[str]) -> str:
    return next((part.split("=")[-1] for part in argv[1:] if part.endswith(".py")), "?")


def run() -> None:
    """Entry point of ``cwps`` and ``python -m cwps_jax.main``: errors in what was given are one line."""
    try:
        app.run(main, flags_parser=_parse)
    except (CwpsError, FloatingPointError) as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        print(f"cwps: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run()
