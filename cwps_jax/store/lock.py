"""Locks on files that the operating system frees whenever their holder dies.

A lock is `flock` on a file that is never removed, so nobody has to find out whether a holder is still alive.
It works between the processes and threads of one machine. On a network file system it works between machines
only if that supports `flock` (NFS does from version 4; Lustre needs the mount option "flock"). If there is no
`flock` at all, the pool is not written.
"""

import contextlib
import fcntl
import os
import pathlib
import time
from collections.abc import Iterator

from cwps_jax.errors import CwpsError

SECONDS = 300.0  # that a writer waits for its turn: the largest model is written in a tenth of it


class Taken(CwpsError):
    """Another process holds the lock."""


@contextlib.contextmanager
def locked(path: pathlib.Path, what: str, seconds: float | None = None) -> Iterator[None]:
    """Holds an exclusive lock while its block runs.

    Args:
        path: path of the lock's file, which is made if it does not exist, and stays.
        what: a text about the lock for the error: "this pool is being written".
        seconds: longest time to wait for it; `SECONDS` by default.

    Raises:
        Taken: another process held it all that time.
        CwpsError: the file system has no locks or cannot be written.
    """
    try:
        file = path.open("a+")
    except OSError as error:
        raise CwpsError(
            f"{path}: cannot be written ({error.strerror}); use a folder that you may write to"
        ) from error
    with file:
        until = time.monotonic() + (SECONDS if seconds is None else seconds)
        while not _taken(file.fileno(), path):
            if time.monotonic() >= until:
                file.seek(0)
                raise Taken(
                    f"{path}: {what} by process {file.read() or 'unknown'}; try again when it has ended"
                )
            time.sleep(0.005)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _taken(descriptor: int, path: pathlib.Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise CwpsError(
            f"{path}: this file system has no locks ({error.strerror}); put the pool on one that has"
        ) from error
    return True
