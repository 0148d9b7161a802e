"""The only place that speaks to Orbax: trees of NumPy arrays in and out, with a hash of our own.

Orbax verifies its index files but not array bytes: a flipped bit in an array file restores without an
error. So every file of a saved tree is hashed, and the hash is compared before anything is loaded.
"""

import hashlib
import pathlib
import shutil
from typing import Any

import jax
import numpy as np

from cwps_jax.core.trees import Tree, flatten, unflatten
from cwps_jax.errors import CwpsError


def save(folder: pathlib.Path, tree: Tree) -> str:
    """Writes a tree of arrays and returns the SHA-256 of what was written.

    Arrays without elements are left out, since Orbax stores none; a reader knows their shape anyway.

    Args:
        folder: a folder that the index does not refer to; one left by an interrupted run is replaced.
        tree: nested dict of arrays.
    """
    import orbax.checkpoint as ocp

    arrays = {name: np.asarray(leaf) for name, leaf in flatten(tree).items() if np.size(leaf)}
    if folder.exists():
        shutil.rmtree(folder)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(folder.absolute(), args=ocp.args.PyTreeSave(unflatten(arrays)))
    return files_sha256(folder)


def load(folder: pathlib.Path, sha256: str) -> dict[str, Any]:
    """Returns the tree that `save` wrote, as NumPy arrays.

    Raises:
        CwpsError: the folder is missing, or its files are not those that were written.
    """
    import orbax.checkpoint as ocp

    if not folder.is_dir():
        raise CwpsError(f"{folder}: missing; restore it from a copy of the pool")
    if files_sha256(folder) != sha256:
        raise CwpsError(f"{folder}: damaged, its files are not those that were saved; restore it from a copy")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        stored = checkpointer.metadata(folder.absolute()).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
        arguments = ocp.args.PyTreeRestore(restore_args=as_numpy)
        return checkpointer.restore(folder.absolute(), args=arguments)


def files_sha256(folder: pathlib.Path) -> str:
    """Returns the SHA-256 over names and contents of all files in a folder, hidden ones left out."""
    sha256 = hashlib.sha256()
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    for path in sorted(files):
        sha256.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            sha256.update(hashlib.file_digest(file, "sha256").digest())
    return sha256.hexdigest()


def payload_bytes(tree: Tree) -> int:
    """Returns the bytes of all arrays: what is stored, without the file system's own."""
    return sum(np.asarray(leaf).nbytes for leaf in flatten(tree).values())
