"""The only place that speaks to Orbax: trees of NumPy arrays in and out, with a hash of our own.

Orbax verifies its index files but not array bytes: a flipped bit in an array file restores without an
error. So every tree's contents are hashed when saved and compared when loaded.
"""

import hashlib
import pathlib
import shutil
from typing import Any

import jax
import numpy as np

from cwps_jax.core.trees import Tree, flatten, unflatten
from cwps_jax.errors import CwpsError


def save(path: pathlib.Path, tree: Tree) -> str:
    """Writes a tree of arrays and returns its SHA-256.

    Arrays without elements are left out, since Orbax stores none; a reader knows their shape anyway.

    Args:
        path: a folder that the index does not refer to; one left by an interrupted run is replaced.
        tree: nested dict of arrays.
    """
    import orbax.checkpoint as ocp

    arrays = {name: np.asarray(leaf) for name, leaf in flatten(tree).items() if np.size(leaf)}
    if path.exists():
        shutil.rmtree(path)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(path.absolute(), args=ocp.args.PyTreeSave(unflatten(arrays)))
    return digest(arrays)


def load(path: pathlib.Path, sha256: str) -> dict[str, Any]:
    """Returns the tree that `save` wrote, as NumPy arrays.

    Raises:
        CwpsError: it is missing, cannot be read, or is not what was saved.
    """
    import orbax.checkpoint as ocp

    if not path.is_dir():
        raise CwpsError(f"{path}: missing; restore it from a copy of the pool")
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            stored = checkpointer.metadata(path.absolute()).item_metadata.tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
            arguments = ocp.args.PyTreeRestore(restore_args=as_numpy)
            tree = checkpointer.restore(path.absolute(), args=arguments)
    except Exception as error:  # Orbax raises many kinds for a damaged folder, none of them readable
        raise CwpsError(
            f"{path}: damaged, it cannot be read ({type(error).__name__}); restore it from a copy"
        ) from error
    if digest(flatten(tree)) != sha256:
        raise CwpsError(f"{path}: damaged, its contents are not what was saved; restore it from a copy")
    return tree


def digest(arrays: dict[str, Any]) -> str:
    """Returns the SHA-256 over names, types, shapes and bytes of a flat dict of arrays."""
    sha256 = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        sha256.update(f"{name}|{array.dtype.str}|{np.shape(arrays[name])}|".encode())
        sha256.update(array.tobytes())
    return sha256.hexdigest()


def payload_bytes(tree: Tree) -> int:
    """Returns the bytes of all arrays: what is stored, without the file system's own."""
    return sum(np.asarray(leaf).nbytes for leaf in flatten(tree).values())
