"""SSF (Lian et al. 2022, arXiv 2210.08823): a scale and a shift after every operation, merged."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from cwps_jax.core.channels import Layout, gate_for_leaf
from cwps_jax.core.trees import Flat, Tree, flatten, unflatten
from cwps_jax.methods.method import Group, Moment
from cwps_jax.methods.network import Network
from cwps_jax.methods.optimizers import adam
from cwps_jax.methods.parts import Parts, norm_leaves
from cwps_jax.settings import TrainConfig
from cwps_jax.settings.checks import at_least


@dataclasses.dataclass(frozen=True)
class Ssf(Parts):
    """y = scale * z + shift after each layer and each norm, which is the layer with other weights.

    A layer without a bias gets only a scale, because the norm after it would remove a shift. Scales start at
    N(1, 0.02), shifts at N(0, 0.02). AdamW as in the public code (dongzelian/SSF); its rate depends on the
    data set.

    Attributes:
        learning_rate: learning rate of scales and shifts, at the schedule's peak.
        weight_decay: weight decay of scales and shifts.
    """

    name: ClassVar[str] = "ssf"

    learning_rate: float = 1e-3
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "config.ssf.", learning_rate=0, weight_decay=0)

    def added(self, moment: Moment) -> Tree:
        rng = np.random.default_rng(moment.training.seed)
        layout = moment.network.layout
        scales: Flat = {layer.path: layer.gate_shape for layer in layout.layers}
        shifts: Flat = {}
        for layer in layout.layers:
            shifts.update(zip(layer.leaves[1:], layer.shapes[1:], strict=True))
        for path, shape in layout.private:
            if path in norm_leaves(layout):
                (scales if path.endswith("scale") else shifts)[path] = shape
        draw = lambda mean, shapes: unflatten(
            {
                path: (mean + 0.02 * rng.standard_normal(shape)).astype(np.float32)
                for path, shape in shapes.items()
            }
        )
        return {"scales": draw(1, scales), "shifts": draw(0, shifts)}

    def groups(self, network: Network, training: TrainConfig) -> Mapping[str, Group]:
        group = Group(adam(weight_decay=self.weight_decay), self.learning_rate)
        return {"scales": group, "shifts": group}

    def changed(self, layout: Layout, own: Tree, pretrained: Flat) -> Flat:
        scales, shifts = flatten(own["scales"]), flatten(own["shifts"])
        found = {path: pretrained[path] * scale for path, scale in scales.items()}
        beside = {path.rpartition("/")[0]: scale for path, scale in scales.items()}
        for path, shift in shifts.items():
            scale = beside.get(path.rpartition("/")[0])
            scaled = pretrained[path] if scale is None else pretrained[path] * gate_for_leaf(scale, shift)
            found[path] = scaled + shift
        return found
