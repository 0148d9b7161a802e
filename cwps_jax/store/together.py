"""One pool in several processes: process 0 changes it, and all of them use its new state."""

import hashlib
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from cwps_jax import distributed
from cwps_jax.core.coding import Codes
from cwps_jax.core.trees import Tree, flatten


def by_first(what: str, folder: pathlib.Path, action: Callable[[], Any]) -> None:
    """Lets process 0 alone act on a pool, and waits until this process sees the index that it left.

    Args:
        what: is done, for the error.
        folder: the pool's.
        action: what process 0 does.

    Raises:
        CwpsError: as `distributed.by_first`.
    """

    def acted() -> str:
        action()
        return index_sha256(folder) if distributed.many() else ""

    distributed.by_first(what, acted, seen=lambda told: index_sha256(folder) == told)


def index_sha256(folder: pathlib.Path) -> str:
    """Returns the SHA-256 of a pool's index, "" where there is no pool."""
    file = folder / "index.json"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""


def agree_on(task: str, *trees: Tree) -> None:
    """Raises CwpsError if processes are about to store different arrays of a task.

    Args:
        task: its name.
        trees: all of its stored trees.
    """
    if not distributed.many():
        return
    digests = {}
    for number, tree in enumerate(trees):
        for path, leaf in flatten(tree).items():
            arrays = leaf.parts.values() if isinstance(leaf, Codes) else (np.asarray(leaf),)
            sha256 = hashlib.sha256(repr([(one.dtype.name, one.shape) for one in arrays]).encode())
            for one in arrays:
                sha256.update(np.ascontiguousarray(one).tobytes())
            digests[f"{path} of {task}" if number == 0 else f"rows of {path} of {task}"] = sha256.hexdigest()
    distributed.agree("before storing", digests)
