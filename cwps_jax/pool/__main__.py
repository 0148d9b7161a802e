"""The command line of a pool: ``python -m cwps_jax.pool VERB POOL ...``, or ``cwps-pool``.

A mistake in the arguments or the pool is one line on stderr and exit status 2; docs/pool.md shows each verb.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from cwps_jax.errors import CwpsError
from cwps_jax.pool import answers, changes, stored
from cwps_jax.settings import nearest
from cwps_jax.store import Pool


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line like all others."""

    def error(self, message: str) -> NoReturn:
        raise CwpsError(f"{message}; see {self.prog} --help")


def parser() -> argparse.ArgumentParser:
    """Returns the parser of all verbs."""
    common = _Parser(add_help=False)
    common.add_argument("pool", metavar="POOL", help="the pool's folder, such as runs/digits/pool")
    common.add_argument("--json", action="store_true", help="JSON instead of a table")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    whole = _Parser(prog="cwps-pool", description="What a pool holds, and what its tasks answer.")
    verbs = whole.add_subparsers(metavar="VERB", required=True, parser_class=_Parser)
    for module in (stored, answers, changes):
        module.add_verbs(verbs, common)
    return whole


def main(arguments: Sequence[str]) -> None:
    """Runs a verb.

    Args:
        arguments: a verb, the pool's folder, and what the verb takes.

    Raises:
        CwpsError: a mistake in them, in the pool or in an image.
    """
    whole = parser()
    _check_verb(whole, arguments)
    given = whole.parse_args(arguments)
    if "make" in given:  # there is no pool yet
        return given.make(given)
    given.run(Pool.open(given.pool), given)


def run() -> None:
    """Entry point of ``cwps-pool`` and ``python -m cwps_jax.pool``."""
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (CwpsError, OSError) as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
        print("cwps-pool:", *text.splitlines(), file=sys.stderr)
        sys.exit(2)


def _check_verb(whole: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Raises CwpsError for an unknown verb with the nearest one; argparse would name all of them."""
    known = [*stored.VERBS, *answers.VERBS, *changes.VERBS]
    if not arguments:
        raise CwpsError(f"no verb: give one of {', '.join(known)}, then the pool's folder")
    verb = arguments[0]
    if not verb.startswith("-") and verb not in known:
        near = nearest(verb, known)
        told = f"did you mean {near}?" if near else f"choose one of {', '.join(known)}"
        raise CwpsError(f"no verb {verb!r}; {told}")


if __name__ == "__main__":
    run()
