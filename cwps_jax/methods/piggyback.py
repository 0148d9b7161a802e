"""Piggyback (Mallya et al. 2018, arXiv 1801.06519): a binary or ternary mask over the frozen weights."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from cwps_jax.core.channels import Layout
from cwps_jax.core.masks import straight_through
from cwps_jax.core.trees import Flat, Tree, flatten, map_with_path, unflatten
from cwps_jax.methods.channels import pack_bits, unpack_bits
from cwps_jax.methods.method import Group, Moment, Restoring
from cwps_jax.methods.network import Network
from cwps_jax.methods.optimizers import adam
from cwps_jax.methods.parts import Parts, numbers
from cwps_jax.methods.schedules import Steps
from cwps_jax.settings import TrainConfig
from cwps_jax.settings.checks import at_least

START, THRESHOLD = 1e-2, 5e-3  # of the public code (arunmallya/piggyback)


@dataclasses.dataclass(frozen=True)
class Piggyback(Parts):
    """W = m * P, m = 1 where a real score is at least 0.005, straight-through; biases and norms stay.

    Scores start at 0.01. Published: Adam at 1e-4 that falls to a tenth at half of the steps, for scores and
    for the classifier; here the head follows the config's own optimizer and rate, on the same schedule. The
    public code keeps the epoch that is best on the test set, ours the last one. A mask belongs to the weights
    with which it was learned; the pool never changes these.

    Attributes:
        ternary: whether m is -1 where a score is below 0, with 2 bits per weight instead of 1.
        learning_rate: learning rate of the scores at the beginning.
    """

    name: ClassVar[str] = "piggyback"
    schedule = Steps((0.5,))
    inference: ClassVar[bool] = True

    ternary: bool = False
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "config.piggyback.", learning_rate=0)

    def added(self, moment: Moment) -> Tree:
        layers = moment.network.layout.layers
        return {"masks": unflatten({layer.path: numbers(layer.shapes[0], START) for layer in layers})}

    def groups(self, network: Network, training: TrainConfig) -> Mapping[str, Group]:
        return {"masks": Group(adam(), self.learning_rate)}

    def changed(self, layout: Layout, own: Tree, pretrained: Flat) -> Flat:
        return {path: pretrained[path] * self._mask(score) for path, score in flatten(own["masks"]).items()}

    def penalised(self, own: Tree, network: Network) -> dict[str, Any]:
        return {"kept": jnp.float32(0)}  # bits are no numbers

    def packed(self, layout: Layout, own: Tree) -> Tree:
        stored = {"masks": map_with_path(lambda path, score: pack_bits(score >= THRESHOLD), own["masks"])}
        if self.ternary:
            stored["signs"] = map_with_path(lambda path, score: pack_bits(score < 0), own["masks"])
        return stored

    def unpacked(self, view: Restoring) -> Tree:
        def mask(path: str, bits: np.ndarray) -> np.ndarray:
            shape = view.pretrained[path].shape
            read = lambda stored: unpack_bits(stored, int(np.prod(shape))).reshape(shape)
            one = np.where(read(bits), np.float32(1), np.float32(0))
            return one - read(view.own[f"signs/{path}"]) if self.ternary else one

        return {"masks": unflatten({path: mask(path, bits) for path, bits in view.under("masks").items()})}

    def _mask(self, score: jax.Array) -> jax.Array:
        # A mask of what is restored is 1, 0 or -1, and so its own mask.
        positive = straight_through(score, THRESHOLD)
        if not self.ternary:
            return positive
        # The derivative is 1 everywhere: that of the first, since the other's is taken away.
        return positive - jax.lax.stop_gradient((score < 0).astype(score.dtype))
