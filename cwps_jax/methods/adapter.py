"""Parallel residual adapters (Rebuffi et al. 2018, arXiv 1803.10082): 1 x 1 beside k x k convolutions."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from cwps_jax.core.channels import Layer, Layout
from cwps_jax.core.trees import Flat, Tree, flatten, unflatten
from cwps_jax.errors import CwpsError
from cwps_jax.methods.method import Group, Moment
from cwps_jax.methods.network import Network
from cwps_jax.methods.optimizers import sgd
from cwps_jax.methods.parts import Parts, norm_leaves, numbers
from cwps_jax.methods.schedules import Steps
from cwps_jax.settings import TrainConfig
from cwps_jax.settings.checks import at_least


@dataclasses.dataclass(frozen=True)
class Adapter(Parts):
    """y = conv(x) + A x, with the task's own norms; A is added to the middle of the kernel.

    The middle tap of a padded convolution of odd size is a 1 x 1 convolution with its stride. A starts at
    0. Published settings (srebuffi/residual_adapters): SGD with momentum 0.9, rate 0.1 that falls to a
    tenth at 2/3 and 5/6 of the steps; a weight decay for each data set. Head and norms follow the config's
    own rate on the same schedule.

    Attributes:
        learning_rate: learning rate of the adapters at the beginning.
        weight_decay: weight decay of the adapters.
    """

    name: ClassVar[str] = "adapter"
    schedule = Steps((2 / 3, 5 / 6))

    learning_rate: float = 0.1
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "config.adapter.", learning_rate=0, weight_decay=0)

    def check(self, network: Network, training: TrainConfig) -> None:
        if not any(layer.path not in network.grouped for layer in _square(network.layout)):
            raise CwpsError(
                "method adapter: this backbone has no convolution of odd size above 1 that is not grouped; "
                "choose another method, such as lora"
            )

    def trained(self, layout: Layout) -> tuple[str, ...]:
        return norm_leaves(layout)

    def added(self, moment: Moment) -> Tree:
        grouped = moment.network.grouped
        layers = [layer for layer in _square(moment.network.layout) if layer.path not in grouped]
        return {"adapters": unflatten({layer.path: numbers(layer.shapes[0][-2:], 0.0) for layer in layers})}

    def groups(self, network: Network, training: TrainConfig) -> Mapping[str, Group]:
        return {"adapters": Group(sgd(0.9, self.weight_decay), self.learning_rate)}

    def changed(self, layout: Layout, own: Tree, pretrained: Flat) -> Flat:
        found = {}
        for path, adapter in flatten(own["adapters"]).items():
            height, width = (size // 2 for size in pretrained[path].shape[:2])
            found[path] = pretrained[path].at[height, width].add(adapter)
        return found


def _square(layout: Layout) -> list[Layer]:
    """Returns the layers that are convolutions of an odd size above 1 with their channels last."""
    return [
        layer
        for layer in layout.layers
        if len(layer.gate_shape) == 4
        and layer.gate_shape[:-1] == (1, 1, 1)
        and all(size % 2 for size in layer.shapes[0][:2])
        and max(layer.shapes[0][:2]) > 1
    ]
