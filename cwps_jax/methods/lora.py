"""LoRA (Hu et al. 2021) for Dense and Conv layers in the form of PEFT, and rsLoRA: W = P + s A B."""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from cwps_jax.core.channels import Layer, Layout, from_columns
from cwps_jax.core.patterns import matches
from cwps_jax.core.trees import Flat, Tree, flatten, unflatten
from cwps_jax.errors import CwpsError
from cwps_jax.methods.method import Group, Moment
from cwps_jax.methods.network import Network
from cwps_jax.methods.optimizers import adam
from cwps_jax.methods.parts import Parts, numbers
from cwps_jax.settings import TrainConfig
from cwps_jax.settings.checks import at_least


@dataclasses.dataclass(frozen=True)
class Lora(Parts):
    """A low-rank change of each kernel, merged into it: no activation is computed twice.

    A is (fan-in, rank), uniform in +-1 / sqrt(fan-in); B is (rank, channels) and starts at 0. For a
    convolution this is PEFT's form: A is a convolution to `rank` channels and B a 1 x 1 convolution after it.
    Rank and alpha are PEFT's defaults. The rest of the network is frozen, except for the head and the norm
    statistics, which are the task's own and stored.

    Attributes:
        rank: r, the rank of each change.
        alpha: the change is scaled by alpha / r.
        rank_stabilised: whether the change is scaled by alpha / sqrt(r) instead (rsLoRA).
        learning_rate: learning rate of A and B, at the schedule's peak.
        weight_decay: AdamW's weight decay of A and B.
        layers: patterns over paths of the kernels that get a change.
    """

    name: ClassVar[str] = "lora"

    rank: int = 8
    alpha: float = 8.0
    rank_stabilised: bool = False
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    layers: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "config.lora.", rank=1, alpha=0, learning_rate=0, weight_decay=0)

    def check(self, network: Network, training: TrainConfig) -> None:
        chosen = [layer.path for layer in self._chosen(network.layout)]
        if not chosen:
            raise CwpsError(f"config.lora.layers = {self.layers}: no kernel of this backbone matches")
        grouped = [path for path in chosen if path in network.grouped]
        if grouped:
            raise CwpsError(
                f"config.lora.layers = {self.layers}: {grouped[0]} is of a grouped or depthwise convolution, "
                "which has no low-rank form; give patterns that leave it out"
            )

    def added(self, moment: Moment) -> Tree:
        rng = np.random.default_rng(moment.training.seed)
        first, second = {}, {}
        for layer in self._chosen(moment.network.layout):
            copies, fan_in, channels = _sizes(layer)
            bound = 1 / math.sqrt(fan_in)
            shape = (*copies, fan_in, self.rank)
            first[layer.path] = rng.uniform(-bound, bound, shape).astype(np.float32)
            second[layer.path] = numbers((*copies, self.rank, channels), 0.0)
        return {"lora_a": unflatten(first), "lora_b": unflatten(second)}

    def groups(self, network: Network, training: TrainConfig) -> Mapping[str, Group]:
        group = Group(adam(weight_decay=self.weight_decay), self.learning_rate)
        return {"lora_a": group, "lora_b": group}

    def changed(self, layout: Layout, own: Tree, pretrained: Flat) -> Flat:
        scale = self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)
        first, second = flatten(own["lora_a"]), flatten(own["lora_b"])
        return {
            layer.path: pretrained[layer.path]
            + scale * _product(layer, first[layer.path], second[layer.path])
            for layer in self._chosen(layout)
        }

    def _chosen(self, layout: Layout) -> list[Layer]:
        return [layer for layer in layout.layers if matches(layer.path, self.layers)]


def _sizes(layer: Layer) -> tuple[tuple[int, ...], int, int]:
    """Returns the sizes of a layer's leading axes that count copies, and each copy's fan-in and channels."""
    fan_in_first = next((axis for axis, size in enumerate(layer.gate_shape) if size == 1), 0)
    copies = layer.gate_shape[:fan_in_first]
    channels = layer.channels // math.prod(copies)
    return copies, math.prod(layer.shapes[0]) // layer.channels, channels


def _product(layer: Layer, first: jax.Array, second: jax.Array) -> jax.Array:
    """Returns A B in the kernel's own shape."""
    copies, shape = len(first.shape) - 2, layer.shapes[0]
    columns = jnp.matmul(first, second, precision="highest")
    back = lambda one: from_columns(one, layer.gate_shape[copies:], shape[copies:])
    for _ in range(copies):
        back = jax.vmap(back)
    return back(columns)
