"""`Bucket`: objects below one address of a store, by fsspec. Every error of the store becomes one line.

The package relies only on the promises of GCS and S3: an object is put as a whole, or not at all; an object
can be created only if there is none of its name (if-none-match, if-generation-match); and a listing shows
every object.
"""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from cwps_jax.errors import CwpsError

# The scheme of an address, and the extra of this package that installs its library.
SCHEMES = {"gs": "gcs", "s3": "s3"}
# Seconds between tries, if a bucket has answered before; the libraries also try for some seconds themselves.
PATIENCE = (1.0, 5.0, 20.0, 60.0)

T = TypeVar("T")


def is_address(place: Any) -> bool:
    """Returns whether a place is an address such as gs://mine/run, and not a path."""
    return "://" in str(place)


class Bucket:
    """The objects below an address; their names are relative to it.

    Args:
        address: an address such as gs://mine/run.

    Raises:
        CwpsError: the scheme is unknown, the address names no bucket, or the scheme's library is not
            installed. No request is sent to the store yet.
    """

    def __init__(self, address: str) -> None:
        import fsspec

        scheme, _, path = address.partition("://")
        if scheme not in SCHEMES or not path.strip("/"):
            known = " or ".join(f"{one}://BUCKET/FOLDER" for one in SCHEMES)
            raise CwpsError(f"{address}: not an address of a bucket; give {known}, or a folder")
        self.address = address.rstrip("/")
        self._path = path.strip("/")
        self._answered = False
        try:
            self._store = fsspec.filesystem(scheme)
        except ImportError as error:
            raise CwpsError(
                f"{address}: the library for {scheme}:// is not installed: pip install "
                f"'cwps_jax[{SCHEMES[scheme]}]'"
            ) from error

    def names(self, folder: str) -> list[str]:
        """Returns the names of all objects in a folder and below it."""
        whole = f"{self._path}/{folder}"

        def found() -> list[str]:
            self._store.invalidate_cache()  # the cache of listings
            return self._store.find(whole)

        listed = (name.removeprefix("/") for name in self._asked("listed", found))
        # The libraries may list the folder itself while its first object is put.
        return sorted(name.removeprefix(f"{self._path}/") for name in listed if name.startswith(f"{whole}/"))

    def get(self, name: str) -> bytes | None:
        """Returns an object's content, or None if there is no such object."""
        try:
            return self._asked("read", lambda: self._store.cat_file(self._of(name)), missing=True)
        except FileNotFoundError:
            return None

    def put(self, name: str, content: bytes) -> None:
        """Puts an object, or replaces it, as a whole."""
        self._asked("written", lambda: self._store.pipe_file(self._of(name), content))

    def create(self, name: str, content: bytes) -> bool:
        """Puts an object if there is none of its name; returns whether it was put."""
        try:
            self._asked("written", lambda: self._store.pipe_file(self._of(name), content, mode="create"))
        except FileExistsError:
            return False
        return True

    def remove(self, name: str) -> None:
        """Removes an object, if it is there."""
        try:
            self._asked("removed", lambda: self._store.rm_file(self._of(name)), missing=True)
        except FileNotFoundError:
            return

    def _of(self, name: str) -> str:
        return f"{self._path}/{name}"

    def _asked(self, what: str, action: Callable[[], T], missing: bool = False) -> T:
        """Returns the store's answer; if the store has answered before, failed requests are tried again.

        Raises:
            FileExistsError: the object is there already.
            FileNotFoundError: the object is not there, which the caller expects by `missing`.
            CwpsError: anything else failed.
        """
        for seconds in (*PATIENCE, None):
            try:
                answer = action()
            except FileExistsError:
                raise
            except FileNotFoundError as error:
                if missing:
                    raise
                raise CwpsError(
                    f"{self.address}: there is no such bucket; make it, or name another"
                ) from error
            except Exception as error:  # Each library has exceptions of its own.
                if isinstance(error, PermissionError) or not self._answered or seconds is None:
                    why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                    raise CwpsError(
                        f"{self.address}: cannot be {what} ({why}); look at its name, your credentials for "
                        "it and the network, then the same command goes on"
                    ) from error
                time.sleep(seconds)
            else:
                self._answered = True
                return answer
        raise AssertionError("the last try returns or raises")
