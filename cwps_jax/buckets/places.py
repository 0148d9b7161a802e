"""The places on this machine for copies of a bucket's folders."""

import hashlib
import os
import pathlib


def local_folder(address: str, purpose: str) -> pathlib.Path:
    """Returns the folder of a copy, in the user's cache: $XDG_CACHE_HOME, or ~/.cache.

    Args:
        address: an address such as gs://mine/run.
        purpose: "run" for a run that writes, "read" for reading a pool; each has a copy of its own.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name, own = address.rstrip("/").rsplit("/", 1)[-1], hashlib.sha256(address.rstrip("/").encode())
    return pathlib.Path(cache, "cwps_jax_buckets", purpose, f"{name}-{own.hexdigest()[:16]}")
