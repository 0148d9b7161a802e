"""`Network`: a model and its properties, for all of its tasks."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import flax.linen as nn
import jax

from cwps_jax.active_gradient import gradient_work
from cwps_jax.core.channels import Layout
from cwps_jax.core.compact import Capacity, choose_capacity
from cwps_jax.core.trees import Tree, flatten
from cwps_jax.tracing import (
    attention_paths,
    batch_norms,
    cast_types,
    grouped_kernels,
    mode,
    parameter_depths,
)

T = TypeVar("T")


class Network:
    """A model and its properties; those that take long to compute are kept.

    Attributes:
        model: a Linen model with its head.
        layout: its layout.
        example: shape and type of a batch of one image; a dict of such for `Inputs`.
    """

    def __init__(self, model: nn.Module, layout: Layout, example: jax.ShapeDtypeStruct) -> None:
        self.model = model
        self.layout = layout
        self.example = example
        self._remembered: dict[Any, Any] = {}
        self._capacities: list[Capacity] = []

    def remembered(self, key: Any, make: Callable[[], T]) -> T:
        """Returns the result of `make`, which is called once for each key."""
        if key not in self._remembered:
            self._remembered[key] = make()
        return self._remembered[key]

    def capacity(self, gates: Tree) -> Capacity:
        """Returns the array sizes for open channels, the same for all tasks that can share a compiled step.

        Args:
            gates: nested dict of hard gates, on the host.
        """
        capacity = choose_capacity(self.layout, gates, self._capacities, self._work)
        self.know_capacity(capacity)
        return capacity

    def know_capacity(self, capacity: Capacity) -> None:
        """Keeps the array sizes of a task, such as of one that was learned before the process began."""
        if capacity not in self._capacities:
            self._capacities.append(capacity)

    def begin_run(self) -> None:
        """Forgets the array sizes of earlier tasks, so that later results do not depend on them.

        With other sizes, sums are taken in another order, which changes the last bits of a result.
        """
        self._capacities.clear()

    @functools.cached_property
    def cast_types(self) -> Mapping[str, Any]:
        """{path: dtype} of parameters that the model reads only to cast them, see `tracing.cast_types`."""
        return cast_types(self.model, self.example)

    @functools.cached_property
    def depths(self) -> Mapping[str, int]:
        """{path: depth} of every leaf, see `tracing.parameter_depths`."""
        return parameter_depths(self.model, self.example, head=self.layout.head_paths)

    @functools.cached_property
    def grouped(self) -> frozenset[str]:
        """Paths of the kernels of grouped and depthwise convolutions."""
        return grouped_kernels(self.model, self.example)

    @functools.cached_property
    def attentions(self) -> Mapping[str, tuple[int, int]]:
        """{path: (heads, features of a head)} of the attentions, in their order; none in a ResNet."""
        return attention_paths(self.model, self.example)

    @functools.cached_property
    def batch_norms(self) -> Mapping[str, nn.BatchNorm]:
        """{path: module} of the modules that are `nn.BatchNorm`, whose momentum can be set from outside."""
        return batch_norms(self.model, self.example)

    @functools.cached_property
    def folding(self) -> Mapping[str, float]:
        """{path: epsilon} of the batch norms whose statistics can be folded, see `core.folding`."""
        return {
            path: norm.epsilon
            for path, norm in self.batch_norms.items()
            if type(norm) is nn.BatchNorm  # a subclass may compute something else from the same leaves
            and {f"{path}/scale", f"{path}/bias"} <= self.layout.backbone_shapes.keys()  # not of a head
        }

    @property
    def statistics(self) -> tuple[int, ...]:
        """The number of elements of each leaf of the model's other collections, such as norm statistics."""
        return tuple(self._other.values())

    @property
    def unfolded_statistics(self) -> tuple[int, ...]:
        """The same without the statistics of the norms in `folding`."""
        folded = {f"batch_stats/{path}" for path in self.folding}
        return tuple(size for path, size in self._other.items() if path.rpartition("/")[0] not in folded)

    @functools.cached_property
    def _other(self) -> Mapping[str, int]:
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        begin = lambda images: self.model.init(keys, images, **mode(self.model, train=False))
        shapes = jax.eval_shape(begin, self.example)
        other = {key: tree for key, tree in shapes.items() if key != "params"}
        return {path: leaf.size for path, leaf in flatten(other).items()}

    @functools.cached_property
    def _work(self) -> Mapping[str, float]:
        return gradient_work(self.model, self.example, self.layout)
