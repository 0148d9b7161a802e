"""Outputs and metrics of a plain model over a whole split."""

import hashlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from cwps_jax.core.trees import Tree
from cwps_jax.data.pipeline import ahead, evaluation_batches
from cwps_jax.data.preparation import Preparation
from cwps_jax.data.split import Arrays, Split, as_split
from cwps_jax.errors import CwpsError
from cwps_jax.inputs import check_inputs, input_names, inputs_of
from cwps_jax.parallel import Compiled, Parallel
from cwps_jax.train.objectives import Metric, WholeSplit
from cwps_jax.train.step import apply_model

# Items that a metric sees at once, whatever the split's length: splits of all lengths share its program.
ITEMS = 256


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
        def forward(variables: Tree, batch: Mapping[str, jax.Array]) -> Any:
            other = {key: tree for key, tree in variables.items() if key != "params"}
            inputs = inputs_of(self.model, {**batch, "image": preparation.normalise(batch["image"])})
            return apply_model(self.model, variables["params"], other, inputs, train=False)

        if preparation not in self._programs:
            self._programs[preparation] = self.parallel.compile(forward, split_output=True)
        return self._programs[preparation]

    def __call__(self, variables: Mapping[str, Any], split: Split | Arrays, batch_size: int) -> Any:
        """Returns the outputs for every item, in order, as NumPy arrays.

        Args:
            variables: "params" and the model's other collections.
            split: the items, or a dict of arrays with "image" and the model's other inputs.
            batch_size: items per batch, rounded up to a multiple of the number of devices.
        """
        split, names = as_split(split), input_names(self.model)
        check_inputs(self.model, {*split.fields, "image"}, "the data")
        devices = len(self.parallel.devices)
        batch_size = -(-batch_size // devices) * devices
        placed, program = self.parallel.replicate(dict(variables)), self._program(split.preparation)
        dispatched = (
            (program(placed, self.parallel.split({name: batch[name] for name in names})), real)
            for batch, real in evaluation_batches(split, batch_size, self.parallel.share)
        )
        parts = [
            jax.tree.map(lambda leaf, real=real: leaf[:real], self.parallel.fetch(output, split=True))
            for output, real in ahead(dispatched, split.prefetch)
        ]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def measure(metric: Metric, outputs: Any, split: Split | Arrays) -> float:
    """Returns a metric of a split, from the outputs of a `Predictor`: its mean, or that of all items at once.

    Args:
        metric: a metric of single items, or of a `whole_split`.
        outputs: (items, ...), or a tree of such.
        split: the items.

    Raises:
        CwpsError: a metric of a whole split gives more than one number.
    """
    items = jax.tree.map(np.asarray, (outputs, dict(as_split(split).fields)))
    if isinstance(metric, WholeSplit):
        value = np.asarray(metric.function(*items))
        if value.ndim or value.dtype.kind not in "biuf":
            raise CwpsError(
                f"the metric of a whole split gives {value.shape} {value.dtype}: must be one number"
            )
        return float(value)
    program = jax.jit(metric)
    count = len(jax.tree.leaves(items)[0])

    def part(first: int) -> np.ndarray:
        rows = np.minimum(np.arange(first, first + ITEMS), count - 1)  # the last item fills the last part up
        return np.asarray(program(*jax.tree.map(lambda leaf: leaf[rows], items)))[: count - first]

    values = np.concatenate([part(first) for first in range(0, count, ITEMS)])
    return float(np.mean(values, dtype=np.float64))


def outputs_sha256(outputs: Any) -> str:
    """Returns the SHA-256 of all bits of a model's outputs."""
    sha256 = hashlib.sha256()
    for leaf in jax.tree.leaves(outputs):
        sha256.update(np.ascontiguousarray(leaf).tobytes())
    return sha256.hexdigest()
