"""Outputs and metrics of a plain model over a whole split."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from cwps_jax.core.trees import Tree, flatten, merge, select
from cwps_jax.data.pipeline import ahead, evaluation_batches
from cwps_jax.data.preparation import Preparation
from cwps_jax.data.split import Arrays, Batch, Split, as_split
from cwps_jax.parallel import Compiled, Parallel
from cwps_jax.train.head_split import split_at_head
from cwps_jax.train.objectives import Objective
from cwps_jax.train.step import apply_model

# Items that a metric sees at once, whatever the split's length: splits of all lengths share its program.
ITEMS = 256

Program = Callable[[Tree, Tree, jax.Array], Any]


class Predictor:
    """Applies a plain model, in inference mode, to whole splits.

    Args:
        model: a Linen model.
        parallel: how batches are spread over devices.
        head: paths of its head's leaves: up to them it is one program, and from there on another.
        programs: what was compiled, to be shared: predictors that are given the same dict compile what is
            equal once, and models that differ in their heads alone are equal up to there.
    """

    def __init__(
        self,
        model: nn.Module,
        parallel: Parallel | None = None,
        *,
        head: Sequence[str] = (),
        programs: dict[str, Compiled] | None = None,
    ) -> None:
        self.model = model
        self.parallel = parallel or Parallel()
        self._head = head
        self._shared = {} if programs is None else programs
        self._programs: dict[Any, Program] = {}

    def _program(self, preparation: Preparation, head: Tree, rest: Tree, images: jax.Array) -> Program:
        def forward(head: Tree, rest: Tree, images: jax.Array) -> Any:
            other = {key: tree for key, tree in rest.items() if key != "params"}
            params, prepared = merge(rest["params"], head), preparation.normalise(images)
            return apply_model(self.model, params, other, prepared, train=False)

        key = (preparation, images.shape, images.dtype)
        if key not in self._programs:
            halves = split_at_head(forward, *self.parallel.seen((head, rest, images))) if head else None
            if halves is None:
                self._programs[key] = self._kept(forward, head, rest, images)
            else:
                before = self._kept(halves[0], rest, images)
                after = self._kept(halves[1], head, rest, before(rest, images))
                self._programs[key] = lambda head, rest, images: after(head, rest, before(rest, images))
        return self._programs[key]

    def _kept(self, function: Callable[..., Any], *args: Any) -> Compiled:
        """Returns the function compiled, or an equal one that was before it."""
        program = self.parallel.compile(function, split_output=True)
        text = program.lower(*args).as_text()
        return self._shared.setdefault(hashlib.sha256(text.encode()).hexdigest(), program)

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
        params = flatten(variables["params"])
        own = self.parallel.replicate(select(params, self._head))
        others = select(params, [path for path in params if path not in self._head])
        rest = self.parallel.replicate({**variables, "params": others})

        def dispatch(batch: Batch) -> Any:
            images = self.parallel.split(batch["image"])
            return self._program(split.preparation, own, rest, images)(own, rest, images)

        dispatched = ((dispatch(batch), real) for batch, real in evaluation_batches(split, batch_size))
        parts = [
            jax.tree.map(lambda leaf, real=real: leaf[:real], self.parallel.fetch(output, split=True))
            for output, real in ahead(dispatched, split.prefetch)
        ]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def measure(metric: Objective, outputs: Any, split: Split | Arrays) -> float:
    """Returns the mean of a metric over a split, from the outputs of a `Predictor`."""
    program = jax.jit(metric)
    items = jax.tree.map(np.asarray, (outputs, dict(as_split(split).fields)))
    count = len(jax.tree.leaves(items)[0])

    def part(first: int) -> np.ndarray:
        rows = np.minimum(np.arange(first, first + ITEMS), count - 1)  # the last item fills the last part up
        return np.asarray(program(*jax.tree.map(lambda leaf: leaf[rows], items)))[: count - first]

    values = np.concatenate([part(first) for first in range(0, count, ITEMS)])
    return float(np.mean(values, dtype=np.float64))
