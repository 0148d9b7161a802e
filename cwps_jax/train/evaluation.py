"""Outputs and metrics of a plain model over a whole split."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cwps_jax.data.pipeline import ahead, evaluation_batches
from cwps_jax.data.preparation import Preparation
from cwps_jax.data.split import Arrays, Split, as_split
from cwps_jax.parallel import Compiled, Parallel
from cwps_jax.train.objectives import Objective
from cwps_jax.train.step import apply_model


class Predictor:
    """Applies a plain model, in inference mode, to whole splits.

    Args:
        model: a Linen model.
        parallel: how batches are spread over devices.
    """

    def __init__(self, model: nn.Module, parallel: Parallel | None = None) -> None:
        self.model = model
        self.parallel = parallel or Parallel()
        self._programs: dict[Preparation, Compiled] = {}

    def _program(self, preparation: Preparation) -> Compiled:
        def forward(variables, images):
            other = {key: tree for key, tree in variables.items() if key != "params"}
            prepared = preparation.normalise(images)
            return apply_model(self.model, variables["params"], other, prepared, train=False)

        if preparation not in self._programs:
            self._programs[preparation] = self.parallel.compile(forward, split_output=True)
        return self._programs[preparation]

    def __call__(self, variables: Mapping[str, Any], split: Split | Arrays, batch_size: int) -> Any:
        """Returns the outputs for every item, in order, as NumPy arrays.

        Args:
            variables: "params" and the model's other collections.
            split: the items; or a dict of arrays with "image".
            batch_size: items a batch, rounded up to a multiple of the devices.
        """
        split = as_split(split)
        devices = len(self.parallel.devices)
        batch_size = -(-batch_size // devices) * devices
        placed = self.parallel.replicate(dict(variables))
        program = self._program(split.preparation)
        dispatched = (
            (program(placed, self.parallel.split(batch["image"])), real)
            for batch, real in evaluation_batches(split, batch_size)
        )
        parts = [
            jax.tree.map(lambda leaf, real=real: leaf[:real], self.parallel.fetch(output, split=True))
            for output, real in ahead(dispatched, split.prefetch)
        ]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def measure(metric: Objective, outputs: Any, split: Split | Arrays) -> float:
    """Returns the mean of a metric over a split, from the outputs of a `Predictor`."""
    batch = {name: jnp.asarray(array) for name, array in as_split(split).fields.items()}
    values = metric(jax.tree.map(jnp.asarray, outputs), batch)
    return float(np.mean(np.asarray(values), dtype=np.float64))
