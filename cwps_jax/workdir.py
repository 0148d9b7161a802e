"""Where a run writes: a folder, or a folder here whose copy in a bucket is what counts."""

import contextlib
import pathlib
from collections.abc import Iterator

from cwps_jax import distributed
from cwps_jax.buckets import Mirror, is_address, local_folder
from cwps_jax.command_line import check_folder
from cwps_jax.errors import Preempted
from cwps_jax.store.lock import locked


def check_workdir(given: str | pathlib.Path) -> None:
    """Raises CwpsError where a run cannot write to what --workdir names; nothing is written, no bucket asked.

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
    """Gives the folder that a run writes to, and brings what it writes to the bucket that was named.

    Each of many processes has a folder of its own then. The first writes its, and sends what it has written
    wherever `distributed.by_first` is used, after each save, and at the end; the others fetch it. A run that
    is ended by an error sends nothing more: it goes on from what was sent before.

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
