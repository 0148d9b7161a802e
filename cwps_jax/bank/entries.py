"""A task that a bank serves, and what is to be known of it beside its rows."""

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
    """What a task's network is given, and gives.

    Attributes:
        classes: outputs that are the task's.
        shape: of an image as the model sees it, (height, width, channels); () where it is not known.
        dtype: that the model computes in; "" for its own.
        preparation: what is done to a batch on the device.
        pixels: type of an image.
    """

    classes: int
    shape: tuple[int, ...] = ()
    dtype: str = ""
    preparation: Preparation = Preparation()
    pixels: str = "float32"

    @property
    def group(self) -> tuple[str, Preparation]:
        """What pictures have in common that go through one program."""
        return self.dtype, self.preparation


@dataclasses.dataclass(eq=False)
class Entry:
    """One task of a bank.

    Attributes:
        name: as it was asked for, "birds" or "birds@2".
        pool: in which it was found.
        version: which it is.
        described: see `Described`.
        loaded: where its rows lie; None for a task that is stored otherwise, whose tree is made by the pool.
        uses: requests under way.
        dropped: whether it goes when they have ended.
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
        pool: where.
        trees: of its folder.
        name: "birds" or "birds@2".
        known: see `Described`.
        plain: the backbone's model.

    Raises:
        CwpsError: its method adds to the model.
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
    """Returns the variables of a task that is not stored as channels, its head widened.

    Args:
        entry: the task.
        classes: room for its head.
    """
    variables = flatten(entry.pool.effective(entry.version.name))
    for path in entry.pool.layout.head_paths:
        if f"params/{path}" in variables:
            variables[f"params/{path}"] = widened(variables[f"params/{path}"], classes)
    return unflatten(variables)
