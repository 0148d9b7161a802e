"""The only module that uses Orbax: it saves and loads trees of NumPy arrays, with a hash of our own.

::

    folder/
      leaves.json           {path of a leaf: its dtype, shape, and offset in elements}, in order; of one in
                            few bits the same of each of its parts, its bits and its shape
      arrays/               an Orbax tree: for each dtype one flat array, of all leaves that have it
        float32/0             its values and nothing else

Orbax takes up to a millisecond per array, and a model has hundreds of leaves. An array's file has only its
values, so a reader maps it into memory: only used parts are read, and they stay in memory while the system
has space. Orbax verifies its index files but not array bytes: a flipped bit in an array file restores without
an error. So every file of a saved tree is hashed, and the hash is compared before anything is read.
"""

import functools
import hashlib
import json
import math
import os
import pathlib
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from cwps_jax.core.coding import Codes
from cwps_jax.core.entropy import BY_BUDGET, from_parts
from cwps_jax.core.trees import Tree, flatten
from cwps_jax.errors import CwpsError

OPEN_FILES = 10240  # where the system sets no limit


def save(folder: pathlib.Path, tree: Tree) -> str:
    """Writes a tree of arrays and returns the SHA-256 of its files.

    Args:
        folder: a folder to which the index does not refer; one left by an interrupted run is replaced.
        tree: nested dict of arrays and codes.
    """
    import orbax.checkpoint as ocp

    leaves: dict[str, Any] = {}
    arrays: list[np.ndarray] = []
    sizes = Counter[str]()

    def placed(array: np.ndarray) -> dict[str, Any]:
        arrays.append(array)
        dtype = array.dtype.name
        sizes[dtype] += array.size
        return {"dtype": dtype, "shape": array.shape, "offset": sizes[dtype] - array.size}

    for path, leaf in flatten(tree).items():
        if isinstance(leaf, Codes):
            parts = {key: placed(part) for key, part in leaf.parts.items()}
            leaves[path] = {"bits": leaf.bits, "shape": leaf.shape, **parts}
        else:
            leaves[path] = placed(np.asarray(leaf))
    flat = {
        dtype: np.concatenate([array.ravel() for array in arrays if array.dtype.name == dtype])
        for dtype in +sizes  # those that have elements: Orbax stores no others
    }
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    with (folder / "leaves.json").open("w") as file:
        json.dump(leaves, file)
        file.flush()
        os.fsync(file.fileno())  # on the disk before the index names it; Orbax does so with its own
    if flat:
        # By the handler itself: it writes where it is told to, and the pool's index makes it count.
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False)
        (folder / "arrays").mkdir()
        handler.save((folder / "arrays").absolute(), args=ocp.args.PyTreeSave(flat))
    for dtype, array in flat.items():
        if _file(folder, dtype).stat().st_size != array.nbytes:
            raise CwpsError(f"{_file(folder, dtype)}: not plain values; use an Orbax of the version pinned")
    return files_sha256(folder)


class Leaves(Mapping[str, np.ndarray | Codes]):
    """A stored tree's leaves by their paths, read-only: each becomes an array when it is asked for.

    Args:
        described: {path of a leaf: its dtype, shape, and offset in elements}, see above.
        flat: {dtype: the elements of all leaves that have it}.
    """

    def __init__(self, described: Mapping[str, Any], flat: Mapping[str, np.ndarray]) -> None:
        self._described = described
        self._flat = flat

    def __getitem__(self, path: str) -> np.ndarray | Codes:
        described = self._described[path]
        if "bits" not in described:
            return self._array(described)
        parts = {key: self._array(described[key]) for key in _parts(described)}
        shape = tuple(described["shape"])
        if described["bits"] == BY_BUDGET:
            return from_parts(shape, parts)
        return Codes(described["bits"], shape, **parts)

    def _array(self, described: Mapping[str, Any]) -> np.ndarray:
        dtype, shape, offset = (described[key] for key in ("dtype", "shape", "offset"))
        if 0 in shape:
            return np.empty(shape, dtype)
        return self._flat[dtype][offset : offset + math.prod(shape)].reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._described)

    def __len__(self) -> int:
        return len(self._described)


def load(folder: pathlib.Path, sha256: str) -> Leaves:
    """Returns the leaves of the tree that `save` wrote, mapped into memory.

    Raises:
        CwpsError: the folder is missing, or its files are not those that were written.
    """
    if not folder.is_dir():
        raise CwpsError(f"{folder}: missing; restore it from a copy of the pool")
    if files_sha256(folder) != sha256:
        raise CwpsError(f"{folder}: damaged, its files are not those that were saved; restore it from a copy")
    described = json.loads((folder / "leaves.json").read_text())
    whole = [leaf for leaf in described.values() if "bits" not in leaf]
    parts = [leaf[key] for leaf in described.values() for key in _parts(leaf)]
    dtypes = {array["dtype"] for array in (*whole, *parts) if 0 not in array["shape"]}
    _let_many_files_be_open()
    flat = {dtype: np.asarray(np.memmap(_file(folder, dtype), dtype, "r")) for dtype in dtypes}
    return Leaves(described, flat)


@functools.cache
def _let_many_files_be_open() -> None:
    """Raises this process's own limit of open files, often 1024, to the one that its system sets it.

    Python keeps a file open as long as it is mapped, and a pool of hundreds of tasks has thousands of files.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else hard  # macOS takes no more, whatever it says
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _parts(described: Mapping[str, Any]) -> list[str]:
    """Returns the names of the arrays in which a leaf in few bits is stored."""
    return [key for key, part in described.items() if isinstance(part, dict)]


def _file(folder: pathlib.Path, dtype: str) -> pathlib.Path:
    return folder / "arrays" / dtype / "0"


def files_sha256(folder: pathlib.Path) -> str:
    """Returns the SHA-256 over names and contents of a folder's files, without a system's hidden ones."""
    sha256 = hashlib.sha256()
    files = (path for path in folder.rglob("*") if path.is_file())
    for path in sorted(path for path in files if path.name == ".zarray" or path.name[0] != "."):
        sha256.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            sha256.update(hashlib.file_digest(file, "sha256").digest())
    return sha256.hexdigest()


def payload_bytes(tree: Tree) -> int:
    """Returns the bytes of all arrays and codes, without those of the file system."""
    leaves = flatten(tree).values()
    return sum(leaf.nbytes if isinstance(leaf, Codes) else np.asarray(leaf).nbytes for leaf in leaves)
