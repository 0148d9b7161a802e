"""The arguments of every program of the package: a config file, flags over its keys, errors in one line.

The config is the first argument, or ``--config=FILE``; ``FILE:VARIANT`` chooses a variant of it, and
``--config.key=value`` sets a key. Importing this module defines the flags.
"""

import errno
import pathlib
import re
import sys
import traceback
import typing
from collections.abc import Callable, Sequence
from logging import ERROR
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from cwps_jax import distributed
from cwps_jax.config import RunConfig, known_keys, run_config
from cwps_jax.config_help import config_help
from cwps_jax.errors import CwpsError, Preempted, ProcessLost
from cwps_jax.settings import unknown_key

_CONFIG = config_flags.DEFINE_config_file("config", None, "The run's config file.")
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error in what was given.")
HELP = {"--help", "-help", "-h", "--helpshort", "--helpfull"}
_BARE_NAMES = re.compile(r"--?config\.(?P<key>\w+)=(?P<names>[^('\"\[]*,.*)")
PREEMPTED = 42  # what xpk and launch scripts start again, as they do what a signal ended
ABORTED = 134  # with which JAX ends a process whose peer is lost; launchers start that again, too
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
NO_DEVICE = ("Unable to initialize backend", "Unknown backend")  # how JAX's errors of it begin
# How the libraries that carry arrays between processes tell that one does not answer.
NO_ANSWER = re.compile(r"Gloo|NCCL|Connection (closed|reset) by peer")
_CONFIG_FILE = re.compile(r"(--?config=)?(?P<file>[^-].*\.py(:.*)?)")


def run(program: Callable[[Any], int | None], read: Callable[[Any], Any] | None = None) -> None:
    """Calls a program with the given config, and ends the process with its exit status.

    A mistake in the given config or data is one line on stderr and exit status 2. Status 42 means that a
    signal asked the program to end, and the same command resumes it; status 134, that another process was
    lost. A fault of the program has its traceback and exit status 1.

    Args:
        program: from the checked config to the exit status; None is 0.
        read: from the file's `ConfigDict` to the checked config; a `RunConfig` by default.
    """

    def main(argv: Sequence[str]) -> int | None:
        if len(argv) > 1:
            raise CwpsError(f"{argv[1]!r} is not a flag; give the config as --config=FILE")
        if not _DEBUG.value:
            logging.set_verbosity(logging.WARNING)  # Orbax tells of every file at INFO
            logging.get_absl_logger().addFilter(_is_told)
        return program(_read_config(read or _run_config))

    try:
        app.run(main, flags_parser=_parse)
    except Preempted as end:
        print("cwps:", end, file=sys.stderr)
        distributed.stop()
        sys.exit(PREEMPTED)
    except Exception as raised:
        error = _as_lost(raised)
        line = _line(error)
        if not line and not distributed.many():
            raise
        if not line or "--debug" in sys.argv:
            traceback.print_exc()
        print("cwps:", line or repr(error), file=sys.stderr)
        status = ABORTED if isinstance(error, ProcessLost) else 2 if line else 1
        distributed.fail(line or repr(error), status)
        sys.exit(status)


def _is_told(record: Any) -> bool:
    """Whether a line of a log is shown: not a traceback of Orbax's threads, whose error is raised, too."""
    return record.levelno < ERROR or "orbax" not in record.pathname


def _as_lost(error: Exception) -> Exception:
    """Returns an error as `ProcessLost` if it means that another process does not answer in a step."""
    if distributed.many() and isinstance(error, RuntimeError) and NO_ANSWER.search(str(error)):
        text = " ".join(str(error).split())[:300]
        return ProcessLost(
            f"another process does not answer in a step ({text}); see its own last lines, then start all "
            "processes again by the same command"
        )
    return error


def _line(error: Exception) -> str:
    """Returns the line that reports an error, or "" for a fault of the program."""
    text = " ".join(str(error).split())
    if isinstance(error, CwpsError | FloatingPointError):
        return text
    if isinstance(error, OSError) and (error.filename is not None or error.errno in NO_ROOM):
        where = f"{error.filename}: " if error.filename is not None else ""
        remedy = (
            "make room in --workdir and config.cache_dir, or name others"
            if error.errno in NO_ROOM
            else "name another place, or make it one that can be read and written to"
        )
        return f"{where}{error.strerror or text}; {remedy}"
    if isinstance(error, RuntimeError) and text.startswith(NO_DEVICE):
        return f"JAX has no device to run on: {text}; unset JAX_PLATFORMS, or set JAX_PLATFORMS=cpu"
    return ""


def config_name() -> str:
    """Returns the name of the given config: "domainnet_resnet34" for domainnet.py:resnet34."""
    file, *variant = config_flags.get_config_filename(flags.FLAGS["config"]).split(":")
    return "_".join([pathlib.Path(file).stem, *(re.sub(r"\W+", "_", part) for part in variant)])


def _run_config(config: Any) -> RunConfig:
    return run_config(config.to_dict())


def _read_config(read: Callable[[Any], Any]) -> Any:
    if _CONFIG.value is None:
        raise CwpsError("no config: give one, e.g. --config=configs/digits.py")
    try:
        return read(_CONFIG.value)
    except OSError as error:  # a file that could not be read fails when its first value is asked for
        raise CwpsError(f"--config: no such file: {_given_config(sys.argv)}") from error


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses the flags; every mistake in them or in the config file is reported in one line."""
    program, *given = argv
    if HELP.intersection(given):
        print(_help(program))
        sys.exit(0)
    if given and _CONFIG_FILE.fullmatch(given[0]) and not given[0].startswith("-"):
        given[0] = f"--config={given[0]}"
    for part in given:
        found = _BARE_NAMES.fullmatch(part)
        if found and typing.get_type_hints(RunConfig).get(found["key"]) == tuple[str, ...]:
            names = tuple(name.strip() for name in found["names"].split(",") if name.strip())
            raise CwpsError(f'{part}: names are written as --config.{found["key"]}="{names}"')
    try:
        return flags.FLAGS([program, *given])
    except flags.Error as error:
        if str(error).startswith("flag --config="):  # the text has a traceback in it
            raise CwpsError(f"--config: {_given_config(argv)}: {_cause(error)}") from error
        early = isinstance(error, flags.UnrecognizedFlagError) and error.flagname.startswith("config.")
        raise CwpsError(f"{error}" + ("; give a config file before it" if early else "")) from error
    except (AttributeError, KeyError) as error:
        raise CwpsError(_unknown(given) or f"--config: {_given_config(argv)}: {error}") from error
    except OSError as error:
        raise CwpsError(f"--config: no such file: {_given_config(argv)}") from error
    except (TypeError, ValueError, SyntaxError, ImportError) as error:
        raise CwpsError(f"--config: {_given_config(argv)}: {error}") from error


def _help(program: str) -> str:
    """Returns what --help prints: the program's own flags, and the config's keys in groups."""
    own = [
        flag
        for module, listed in flags.FLAGS.flags_by_module_dict().items()
        if module == program or module.startswith("cwps_jax")
        for flag in listed
        if flag.name != "config"
    ]
    lines = [f"  --{flag.name:<26} {flag.default!r:<20} {flag.help}" for flag in own]
    return "\n".join(
        [
            f"{' '.join((sys.modules['__main__'].__doc__ or program).split(chr(10) * 2)[0].split())}",
            "",
            "The config is the first argument, or --config=FILE; FILE:VARIANT chooses a variant of it. The",
            "defaults below are those of a key that the file does not set.",
            "",
            "Flags:",
            *lines,
            "",
            config_help(),
        ]
    )


def _cause(error: BaseException) -> BaseException:
    return error if error.__context__ is None else _cause(error.__context__)


def _unknown(given: Sequence[str]) -> str:
    """Returns the line that refuses a flag of an unknown key, or "" if all keys are known."""
    known = known_keys()
    keys = [part.split("=")[0][9:] for part in given if part.startswith("--config.")]
    for key in keys:
        if key not in known and key.split(".")[0] not in known:
            return unknown_key(key, known)
    nested = [f"config.{key}" for key in keys if "." in key]
    return f"{' or '.join(nested)}: not in the config file; flags set what it has" if nested else ""


def _given_config(argv: Sequence[str]) -> str:
    given = (_CONFIG_FILE.fullmatch(part) for part in argv[1:])
    return next((found["file"] for found in given if found), "?")
