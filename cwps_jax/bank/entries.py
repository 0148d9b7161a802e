"""A task that a bank serves, and the description of it that its rows do not contain."""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn

from cwps_jax.bank.loaded import Loaded
from cwps_jax.bank.stored import is_of_channels, widened
from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.data.preparation import Preparation
from cwps_jax.errors import CwpsError
from cwps_jax.store.index import Version
from cwps_jax.store.pool import Pool
from cwps_jax.store.trees import Trees


class Described(NamedTuple):
    """The inputs and outputs of a task's network.

    Attributes:
        classes: the number of outputs that belong to the task.
        shape: the shape of an image as the model sees it, (height, width, channels); () if it is unknown.
        dtype: the dtype in which the model computes; "" for the model's default.
        preparation: the preparation of a batch that runs on the device.
        pixels: the dtype of an image.
    """

    classes: int
    shape: tuple[int, ...] = ()
    dtype: str = ""
    preparation: Preparation = Preparation()
    pixels: str = "float32"

    @property
    def group(self) -> tuple[str, Preparation]:
        """The properties that all pictures of one program must share."""
        return self.dtype, self.preparation


@dataclasses.dataclass(eq=False)
class Entry:
    """One task of a bank.

    Attributes:
        name: the task's name as it was asked for, "birds" or "birds@2".
        pool: the pool in which it was found.
        version: the version that is served.
        described: its inputs and outputs.
        loaded: where its rows lie; None for a task that is not stored as channels, whose tree the pool makes.
        uses: the number of requests under way.
        dropped: whether the task is freed when they have ended.
    """

    name: str
    pool: Pool
    version: Version
    described: Described
    loaded: Loaded | None
    uses: int = 0
    dropped: bool = False


def entry_of(pool: Pool, trees: Trees, name: str, known: Described, plain: nn.Module) -> Entry:
    """Returns a task that was found in a pool.

    Args:
        pool: the pool.
        trees: the stored trees of the pool's folder.
        name: the task's name, "birds" or "birds@2".
        known: the task's inputs and outputs.
        plain: the backbone's model.

    Raises:
        CwpsError: the task's method adds to the model.
    """
    version = pool.version(name)
    if pool.model(name, plain) is not plain:
        raise CwpsError(
            f"{pool.folder}: {version.name} is stored by {version.method}, which adds to its model: a bank "
            "serves plain backbones; name the other tasks, tasks=, and ask this one by cwps.predict"
        )
    of_channels = is_of_channels(trees, version)
    return Entry(name, pool, version, known, Loaded(trees, version, 0) if of_channels else None)


def whole_tree(entry: Entry, classes: int) -> dict[str, Any]:
    """Returns the variables of a task that is not stored as channels, with its head widened.

    Args:
        entry: the task.
        classes: the number of classes to which its head is widened.
    """
    variables = flatten(entry.pool.effective(entry.version.name))
    for path in entry.pool.layout.head_paths:
        if f"params/{path}" in variables:
            variables[f"params/{path}"] = widened(variables[f"params/{path}"], classes)
    return unflatten(variables)
