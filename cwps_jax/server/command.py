"""``python -m cwps_jax.serve POOL``: its arguments, and a message of one line for each error in them."""

import argparse
import dataclasses
import os
import pathlib
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from cwps_jax.config import RunConfig
from cwps_jax.errors import CwpsError
from cwps_jax.extras import check_extra

TOKEN = "CWPS_TOKEN"


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all errors of this package."""

    def error(self, message: str) -> NoReturn:
        raise CwpsError(f"{message}; see {self.prog} --help")


def run() -> None:
    """Entry point: serves until it is asked to end. The exit status is 0, or 2 if the input is wrong."""
    try:
        main(sys.argv[1:])
    except (CwpsError, OSError) as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        text = f"{error.filename or 'server'}: {error.strerror}" if isinstance(error, OSError) else str(error)
        print("cwps-serve:", *text.splitlines(), file=sys.stderr)
        sys.exit(2)


def main(arguments: Sequence[str]) -> None:
    """Serves a pool as the arguments say.

    Raises:
        CwpsError: the arguments or the pool are wrong, or the extra `serve` is not installed.
    """
    check_extra("serve", "the server")
    # These imports are here because they need packages that may be missing, and JAX, which takes seconds.
    from cwps_jax.compilation_cache import keep_programs
    from cwps_jax.server.app import make_app
    from cwps_jax.server.limits import Limits
    from cwps_jax.server.running import check_address, read_token, serve
    from cwps_jax.store import Pool

    parser = _parser()
    for field in dataclasses.fields(Limits):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=type(field.default), default=field.default, metavar="N")
    given = parser.parse_args(arguments)
    limits = Limits(**{field.name: getattr(given, field.name) for field in dataclasses.fields(Limits)})
    token = read_token(given.token_file, os.environ.get(TOKEN, ""))
    check_address(given.host, given.port, token)
    keep_programs(given.compilation_cache, "--compilation-cache ")
    pool = Pool.open(given.pool)
    from cwps_jax.serve import TaskBank

    bank = TaskBank(pool, given.tasks or None, device_bytes=given.device_bytes, host_bytes=given.host_bytes)
    serve(make_app(bank, pool, limits, token), given.host, given.port, limits)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m cwps_jax.serve",
        description="Serves the tasks of a pool over HTTP; docs/serving.md tells all limits.",
    )
    parser.add_argument("pool", metavar="POOL", help="the pool's folder, such as runs/digits/pool")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="to load; all by default")
    parser.add_argument("--host", default="127.0.0.1", help="another than this machine's own needs a token")
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free")
    parser.add_argument(
        "--token-file", type=pathlib.Path, help=f"holds the token that clients give; or set {TOKEN}"
    )
    parser.add_argument("--device-bytes", type=int, default=0, help="of tasks on the device; 0: no limit")
    parser.add_argument("--host-bytes", type=int, default=0, help="of tasks on the host; 0: no limit")
    parser.add_argument(
        "--compilation-cache",
        default=RunConfig.compilation_cache,
        metavar="FOLDER",
        help="of compiled programs, which the next start reuses; '' for none",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser
