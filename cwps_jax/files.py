"""Files that are replaced as a whole: a reader always sees the old content or the new one."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

LFS_POINTER = b"version https://git-lfs"  # what Git leaves in a file's place where Git LFS is not installed


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives the path of a new file in the same folder, which replaces it at the end if there is no error.

    Args:
        path: path of the file to write or replace; its folder has to exist.
    """
    # With the process's number, since two processes may write the same file at once.
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())  # or a crash of the machine may leave the new name without its content
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a whole file, text as UTF-8, and waits until it is on the disk.

    Raises:
        OSError: it cannot be written; an earlier file is then unchanged.
    """
    with replacing(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
