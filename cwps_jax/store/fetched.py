"""Pools that are read from a bucket, through a copy on this machine that is updated on demand."""

import os
import pathlib

from cwps_jax.buckets import Bucket, Mirror, is_address, local_folder, mirrored_from
from cwps_jax.buckets.commits import Commits
from cwps_jax.errors import CwpsError
from cwps_jax.store.lock import locked

DEPTH = 3  # of a pool in what was copied: run/pool, or run/draw0/pool


def fetched(folder: str | pathlib.Path) -> pathlib.Path:
    """Returns a pool's folder on this machine.

    Args:
        folder: that folder itself, or an address such as gs://mine/run/pool. For an address, and for the
            folder that was returned for one, the newest state is fetched; existing files are not fetched
            again.

    Raises:
        CwpsError: there is no pool at that address, or it cannot be read.
    """
    if is_address(folder):
        address, below = _whole(str(folder).rstrip("/"))
        here = local_folder(str(folder), "read")
    else:
        here = pathlib.Path(folder)
        mark = mirrored_from(here)
        if mark is None:
            return here
        address, below = mark["address"], mark["below"]
    here.mkdir(parents=True, exist_ok=True)
    with locked(here / ".fetching", "this pool is being fetched"):
        Mirror(address, here, below).pull()
    if not (here / "index.json").exists():
        raise CwpsError(f"{address}/{below}: no pool here")
    return here


def check_writable(folder: pathlib.Path) -> None:
    """Raises CwpsError for a pool that is only read: in a folder that cannot be written to, or in a bucket.

    Changes to the copy of a pool in a bucket would be lost.

    Args:
        folder: the pool's, on this machine.
    """
    if mark := mirrored_from(folder):
        raise CwpsError(
            f"{mark['address']}/{mark['below']}: a pool in a bucket is only read here; runs write to it, by "
            "--workdir, or copy its folder and upload what you make of it"
        )
    if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
        raise CwpsError(
            f"{folder}: cannot be written to, so this pool is only read; mend the folder's rights or its "
            "mount, or add tasks to a copy of it"
        )


def _whole(address: str) -> tuple[str, str]:
    """Returns the address of the whole copy of which an address is a part, and the path in it."""
    whole, below = address, ""
    for _ in range(DEPTH):
        if Commits(Bucket(whole)).last():
            return whole, below
        whole, _, name = whole.rpartition("/")
        below = f"{name}/{below}".rstrip("/")
        if whole.count("/") < 3:  # that is a bucket's own name
            break
    raise CwpsError(f"{address}: no pool here; give the address of a run's --workdir, and /pool")
