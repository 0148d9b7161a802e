"""The pool in which a bank finds its tasks, and those among them that it cannot serve."""

from collections.abc import Callable, Iterable

import flax.linen as nn
import jax.numpy as jnp
from absl import logging

from cwps_jax import models
from cwps_jax.bank.entries import Described, Entry, entry_of
from cwps_jax.errors import CwpsError
from cwps_jax.store.pool import Pool
from cwps_jax.store.trees import Trees


class Shelf:
    """The pool of a bank, as it was when it was last opened.

    Args:
        pool: the stored models.
        model: the plain model, or None for the pool's backbone.
        described: the function that describes the inputs and outputs of a task of a pool.

    Attributes:
        left_out: {task: the reason why it cannot be served}.
    """

    def __init__(
        self, pool: Pool, model: nn.Module | None, described: Callable[[Pool, str], Described]
    ) -> None:
        self.pool, self.model = pool, model
        self.trees = Trees(pool.folder, pool.index)
        self.left_out: dict[str, str] = {}
        self._described = described

    def open_anew(self) -> None:
        """Opens the pool again, to see the tasks that were stored or removed since."""
        self.pool = pool = Pool.open(self.pool.folder)
        self.trees = Trees(pool.folder, pool.index)
        self.left_out = {name: why for name, why in self.left_out.items() if name in pool}

    def found(self, name: str) -> Entry:
        """Returns a task. Raises CwpsError if there is none of this name, or it cannot be served."""
        self.pool.version(name)  # Its error says what is wrong with the name.
        known = self._described(self.pool, name)
        plain = self.model_of(known.dtype, known.classes)
        found = entry_of(self.pool, self.trees, name, known, plain)
        self.left_out.pop(name, None)
        return found

    def servable(self, names: Iterable[str]) -> list[Entry]:
        """Returns those tasks that can be served; the others are left out, each with a warning."""
        entries = []
        for name in names:
            try:
                entries.append(self.found(name))
            except CwpsError as error:
                if self.left_out.get(name) != str(error):
                    logging.warning("task %r is left out of the bank: %s", name, error)
                self.left_out[name] = str(error)
        return entries

    def model_of(self, dtype: str, classes: int) -> nn.Module:
        """Returns the given model, or else the pool's plain backbone with a head of `classes` outputs."""
        if self.model is not None:
            return self.model
        if not self.pool.index.backbone:
            raise CwpsError(f"{self.pool.folder}: its backbone is a model of your own; give it by model=")
        options = {"dtype": jnp.dtype(dtype)} if dtype else {}
        return models.create(self.pool.index.backbone, classes, **options)
