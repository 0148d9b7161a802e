"""The folder to which a run writes: on the disk, or on the disk with a copy in a bucket that counts."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from cwps_jax import distributed
from cwps_jax.buckets import Mirror, is_address, local_folder
from cwps_jax.errors import CwpsError, Preempted
from cwps_jax.store.lock import locked


def check_folder(flag: str, folder: str | pathlib.Path) -> None:
    """Raises CwpsError if a folder does not exist and cannot be made, is a file, or cannot be written to.

    Args:
        flag: the flag that names it.
        folder: the folder to which a program will write; nothing is written now.
    """
    if is_address(folder):
        raise CwpsError(f"--{flag}={folder}: a bucket cannot hold it; name a folder that has flock")
    folder = pathlib.Path(folder)
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise CwpsError(f"--{flag}={folder}: {nearest} is not a folder; name another")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise CwpsError(f"--{flag}={folder}: {nearest} cannot be written to; name another")


def check_workdir(given: str | pathlib.Path) -> None:
    """Raises CwpsError if a run cannot write to --workdir; nothing is written, and no bucket is contacted.

    Args:
        given: a path, or the address of a folder in a bucket.
    """
    if not is_address(given):
        check_folder("workdir", given)
        return
    here = local_folder(str(given), "run")
    Mirror(str(given), here)
    check_folder("workdir", here)


@contextlib.contextmanager
def opened_workdir(given: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives the folder to which a run writes, and copies it to the bucket if one was named.

    With a bucket, each of several processes has a folder of its own. The first process writes, and sends its
    files wherever `distributed.by_first` is used, after each save, and at the end; the others fetch them. A
    run that is ended by an error sends nothing further, and resumes from the files that were sent before.

    Args:
        given: a path, or the address of a folder in a bucket.

    Raises:
        CwpsError: the bucket cannot be read or written, or another process of this machine runs there.
    """
    if not is_address(given):
        yield pathlib.Path(given)
        return
    process = distributed.process()
    folder = local_folder(str(given), f"run{process or ''}")
    folder.mkdir(parents=True, exist_ok=True)
    mirror = Mirror(str(given), folder)
    with locked(folder / ".running", f"{given} is being run", seconds=0):
        distributed.by_first(f"{given} is claimed", mirror.claim)
        if not distributed.first():
            mirror.pull()
        with distributed.carried(mirror):
            try:
                yield folder
            except Preempted:
                _end(mirror)
                raise
            _end(mirror)


def _end(mirror: Mirror) -> None:
    if distributed.first():
        mirror.push()
