"""A whole pool as one file: the backbone once, and the stored files of every task.

The file is a zip archive of the pool's folder, without compression, locks and unfinished files. Every array
in it consists of plain values that the `leaves.json` beside it describes, so other programs can read it with
a zip reader and NumPy; see docs/serving.md.
"""

import os
import pathlib
import shutil
import tempfile
import zipfile

from cwps_jax.errors import CwpsError
from cwps_jax.files import replacing
from cwps_jax.store.pool import Pool
from cwps_jax.store.trees import PRETRAINED, TASKS

SUFFIX = ".zip"


def pack_pool(pool: Pool, file: str | os.PathLike[str]) -> None:
    """Writes a pool to one file: the pre-trained model and all versions of all tasks.

    The same pool gives the same file. It is read as it is on the disk now, and every hash is checked first.

    Args:
        pool: the stored models.
        file: the file to write, `*.zip`; it is replaced if it exists.

    Raises:
        CwpsError: something in the pool is damaged, or the file cannot be written there.

    Examples:
        >>> pack_pool(pool, "bank.zip")  # doctest: +SKIP
    """
    path = pathlib.Path(file)
    if path.suffix != SUFFIX:
        raise CwpsError(f"{path}: a packed pool is a zip archive; name it *{SUFFIX}")
    if not path.parent.is_dir():
        raise CwpsError(f"{path}: no such folder: {path.parent}; make it first")
    pool = Pool.open(pool.folder)
    _check(pool, f"{pool.folder}")
    folders = [PRETRAINED, *(f"{TASKS}/{version.folder}" for version in pool.index.versions)]
    with (
        tempfile.TemporaryDirectory() as place,
        replacing(path) as partial,
        zipfile.ZipFile(partial, "w") as archive,
    ):
        index = pathlib.Path(place)
        pool.index.write(index)  # the index of the checked versions, whatever others store meanwhile
        _add(archive, index / "index.json", "index.json")
        for folder in folders:
            for one in sorted(path for path in (pool.folder / folder).rglob("*") if path.is_file()):
                _add(archive, one, one.relative_to(pool.folder).as_posix())


def unpack_pool(file: str | os.PathLike[str], folder: str | os.PathLike[str]) -> Pool:
    """Makes a pool's folder from a file that `pack_pool` wrote, and returns the pool.

    Every hash is checked before the folder appears under its name.

    Args:
        file: the packed pool.
        folder: the folder to make; it must not exist.

    Raises:
        CwpsError: the folder exists, or the file is not a packed pool or is damaged.
    """
    path, target = pathlib.Path(file), pathlib.Path(folder)
    if target.exists():
        raise CwpsError(f"{target}: is there already; name a folder that is to be made")
    if not target.absolute().parent.is_dir():
        raise CwpsError(f"{target}: no such folder: {target.parent}; make it first")
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        _extract(path, partial)
        _check(Pool.open(partial), f"{path}")
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Pool.open(target)


def _add(archive: zipfile.ZipFile, file: pathlib.Path, name: str) -> None:
    member = zipfile.ZipInfo(name)  # without a modification time
    member.file_size = file.stat().st_size  # Without it, members too large for 32 bits would fail.
    with file.open("rb") as source, archive.open(member, "w") as sink:
        shutil.copyfileobj(source, sink)


def _extract(path: pathlib.Path, folder: pathlib.Path) -> None:
    """Unpacks an archive without compression, so that the files are not larger than the archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            plain = all(one.compress_type == zipfile.ZIP_STORED and not one.flag_bits & 1 for one in members)
            if not plain or sum(one.file_size for one in members) > path.stat().st_size:
                raise CwpsError(f"{path}: not a packed pool, whose members are neither compressed nor secret")
            archive.extractall(folder)  # It keeps every member below this folder.
    except FileNotFoundError as error:
        raise CwpsError(f"{path}: no such file; name what pack_pool wrote") from error
    except zipfile.BadZipFile as error:
        raise CwpsError(f"{path}: damaged or no zip archive ({error}); bring it again") from error


def _check(pool: Pool, where: str) -> None:
    found = pool.verify()
    if found:
        raise CwpsError(f"{where}: {len(found)} damaged, the first {found[0].where}; restore it from a copy")
