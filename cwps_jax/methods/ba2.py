"""BA2, budget-aware adapters (Berriel et al. 2019, arXiv 1905.06242): a switch for each input channel."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from cwps_jax.core.channels import Layer, Layout
from cwps_jax.core.masks import straight_through
from cwps_jax.core.trees import Flat, Tree, flatten, unflatten
from cwps_jax.errors import CwpsError
from cwps_jax.methods.channels import pack_bits, unpack_bits
from cwps_jax.methods.method import Group, Moment, Penalty, Restoring
from cwps_jax.methods.network import Network
from cwps_jax.methods.optimizers import adam
from cwps_jax.methods.parts import Parts, norm_leaves, numbers
from cwps_jax.settings import TrainConfig
from cwps_jax.settings.checks import at_least

START, THRESHOLD = 1e-2, 5e-3  # Piggyback's, from which the method comes; BA2's own code was not found


@dataclasses.dataclass(frozen=True)
class Ba2(Parts):
    """Input channels of the frozen layers are switched off for a task, within a budget; norms are its own.

    A closed channel is zero here, and the parent's in cwps. The share of open switches, weighted by the
    number of weights behind them, is held at `budget` by a multiplier of the loss's second term, steered like
    lambda in cwps. If it is still above the budget at the end, switches with the lowest scores are closed.
    Only the paper's abstract could be read, so scores, threshold and optimizer are Piggyback's.

    Attributes:
        budget: largest share of open switches, in (0, 1].
        learning_rate: learning rate of the scores, at the schedule's peak.
    """

    name: ClassVar[str] = "ba2"

    budget: float = 0.5
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "config.ba2.", learning_rate=0)
        if not 0 < self.budget <= 1:
            raise CwpsError(
                f"config.ba2.budget = {self.budget}: must be above 0 and at most 1, a share of the switches"
            )

    def check(self, network: Network, training: TrainConfig) -> None:
        if not _switched(network.layout, network.grouped):
            raise CwpsError(
                "method ba2: this backbone has no layer whose input channels could be switched off"
            )

    def trained(self, layout: Layout) -> tuple[str, ...]:
        return norm_leaves(layout)

    def added(self, moment: Moment) -> Tree:
        layers = _switched(moment.network.layout, moment.network.grouped)
        return {"switches": unflatten({one.path: numbers((one.shapes[0][-2], 1), START) for one in layers})}

    def groups(self, network: Network, training: TrainConfig) -> Mapping[str, Group]:
        return {"switches": Group(adam(), self.learning_rate)}

    def penalty(self, training: TrainConfig) -> Penalty:
        return Penalty(0.0, 0, self.budget, budget_rate=3.0, budget_gain=6.0)

    def penalised(self, own: Tree, network: Network) -> dict[str, Any]:
        switches = flatten(own["switches"])
        costs = {one.path: _cost(one) for one in _switched(network.layout, network.grouped)}
        total = sum(costs[path] * len(score) for path, score in switches.items())
        opened = sum(costs[path] * straight_through(one, THRESHOLD).sum() for path, one in switches.items())
        return {"kept": opened / total, "penalty": opened / total}

    def changed(self, layout: Layout, own: Tree, pretrained: Flat) -> Flat:
        switches = flatten(own["switches"])
        return {path: pretrained[path] * straight_through(one, THRESHOLD) for path, one in switches.items()}

    def packed(self, layout: Layout, own: Tree) -> Tree:
        scores = {path: np.asarray(score).ravel() for path, score in flatten(own["switches"]).items()}
        costs = {layer.path: _cost(layer) for layer in layout.layers if layer.path in scores}
        score = np.concatenate(list(scores.values()))
        cost = np.concatenate([np.full(len(one), costs[path]) for path, one in scores.items()])
        # As core.budgets.harden: the first that does not fit ends it; equal scores in the layers' order.
        wanted = score >= THRESHOLD
        order = np.argsort(np.where(wanted, -score, np.inf), kind="stable")
        opened = np.zeros(len(score), bool)
        opened[order] = np.cumsum(np.where(wanted, cost, 0)[order]) <= self.budget * cost.sum() + 1e-6
        ends = np.cumsum([len(one) for one in scores.values()])[:-1]
        parts = zip(scores, np.split(opened & wanted, ends), strict=True)
        return {"switches": unflatten({path: pack_bits(part) for path, part in parts})}

    def unpacked(self, view: Restoring) -> Tree:
        def switch(path: str, bits: np.ndarray) -> np.ndarray:
            return unpack_bits(bits, view.pretrained[path].shape[-2]).astype(np.float32)[:, None]

        stored = view.under("switches")
        return {"switches": unflatten({path: switch(path, bits) for path, bits in stored.items()})}


def _cost(layer: Layer) -> int:
    """Returns the number of weights behind one of a layer's switches."""
    return math.prod(layer.shapes[0]) // layer.shapes[0][-2]


def _switched(layout: Layout, grouped: frozenset[str]) -> list[Layer]:
    """Returns the Dense and Conv layers whose kernels end in (input channels, output channels).

    Layers of a single input channel, such as the first one for grey images, are not among them: a network
    without it answers everything with one class, and does not learn any longer.
    """
    return [
        layer
        for layer in layout.layers
        if layer.path not in grouped
        and len(layer.gate_shape) in (2, 4)
        and set(layer.gate_shape[:-1]) == {1}
        and layer.shapes[0][-2] > 1
    ]
