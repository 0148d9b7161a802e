"""The search over many processes: each reads and compares the rows of some owners and tells what it found."""

import numpy as np
from safetensors.numpy import load, save

from cwps_jax import distributed

PROCESSES = 8  # that take a share, at most: what they tell each other grows with their number


def mine(owner: np.ndarray) -> np.ndarray:
    """Returns whether this process compares the rows of these owners, bool, in their shape."""
    return _share(owner) == distributed.process()


def joined(*found: np.ndarray) -> list[np.ndarray]:
    """Returns arrays with the findings of all processes, one after the other.

    Args:
        found: findings of this process, (found,) each; their types and number are the same in all processes.
    """
    told = _exchanged(*found)
    return [np.concatenate(parts) for parts in zip(*told, strict=True)]


def completed(values: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Returns values of which each process knows those of its own rows, with those of the others.

    Args:
        values: (..., rows), in the same order in all processes.
        owner: int (rows,).
    """
    for process, (theirs,) in enumerate(_exchanged(values[..., mine(owner)])):
        values[..., _share(owner) == process] = theirs
    return values


def _share(owner: np.ndarray) -> np.ndarray:
    return owner % min(distributed.processes(), PROCESSES)


def _exchanged(*arrays: np.ndarray) -> list[list[np.ndarray]]:
    """Returns the arrays of each process."""
    if not distributed.many():
        return [[*arrays]]
    own = save({str(number): np.ascontiguousarray(array) for number, array in enumerate(arrays)})
    told = map(load, distributed.exchanged(own, "stored rows are compared"))
    return [[theirs[str(number)] for number in range(len(arrays))] for theirs in told]
