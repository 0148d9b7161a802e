"""TAPS (Wallingford et al. 2022, arXiv 2203.16708): a gate for each layer over the pre-trained model."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cwps_jax.core import budgets, masks
from cwps_jax.core.mixing import mix
from cwps_jax.core.trees import Tree, select
from cwps_jax.errors import CwpsError
from cwps_jax.methods import channels
from cwps_jax.methods.method import (
    Begun,
    Clock,
    Effective,
    Finished,
    Group,
    Method,
    Moment,
    Penalty,
    Restoring,
    Rule,
    Stage,
    Stored,
)
from cwps_jax.methods.network import Network
from cwps_jax.methods.optimizers import by_config, sgd
from cwps_jax.methods.rounding import check_rounded, learned_rounded
from cwps_jax.settings import TrainConfig
from cwps_jax.settings.checks import at_least


@dataclasses.dataclass(frozen=True)
class Taps(Method):
    """W = P + I(s) D for each layer, s from 0.15 on and open at 0.1 or more; loss + lambda * mean |s|.

    One SGD for weights, scores, norms and head, as in the public code (MattWallingford/TAPS): the config's
    own. There the rate is 0.005 or 0.01 on a cosine over 30 epochs, and the penalty is left out for the first
    three. Its loss divides by 52 for every backbone, ours by the number of layers, as in the paper. A layer's
    bias is gated with its kernel. The public code selects the epoch on the test set; ours keeps the last one.

    Attributes:
        lambda_: weight of the penalty; 0.1 to 1 are published.
        free_epochs: epochs before the penalty counts.
    """

    name: ClassVar[str] = "taps"

    lambda_: float = 1.0
    free_epochs: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "config.taps.", lambda_=0, free_epochs=0)

    def check(self, network: Network, training: TrainConfig) -> None:
        check_rounded(network, training)
        if self.lambda_ and training.epochs <= self.free_epochs:
            raise CwpsError(
                f"config.epochs = {training.epochs}: TAPS has no penalty for {self.free_epochs} epochs "
                "(config.taps.free_epochs); train longer, or set it lower"
            )

    def stages(self, network: Network, training: TrainConfig) -> tuple[Stage, ...]:
        groups = {
            "params": Group(by_config(training, network), training.peak),
            "masks": Group(sgd(training.momentum), training.learning_rate),
        }
        rule = network.remembered("taps", lambda: _rule(network))
        penalty = Penalty(self.lambda_, self.free_epochs)
        stage = Stage("taps", training.epochs, _begin, rule, groups, penalty=penalty)
        return learned_rounded((stage,), training, network)

    def store(self, finished: Finished) -> Stored:
        moment = finished.moment
        hard = masks.gates(moment.own["masks"], estimator="straight_through")
        hard = jax.device_get(masks.spread(hard, moment.network.layout))
        params = jax.device_get(mix(moment.frozen["parent"], moment.own["params"], hard))
        return channels.store_finished(dataclasses.replace(finished, params=params, gates=hard))

    def restore(self, view: Restoring) -> dict[str, Any]:
        return channels.restore_channels(view)


def _begin(moment: Moment) -> Begun:
    layout, start = moment.network.layout, moment.start["params"]
    scores = jax.device_get(masks.init_scores(layout, "straight_through", "layer"))
    return Begun({"params": start, "masks": scores}, {"parent": select(start, layout.layer_paths)})


def _rule(network: Network) -> Rule:
    def rule(own: Tree, frozen: Tree, clock: Clock) -> Effective:
        scores = own["masks"]
        gates = masks.gates(scores, 1.0, estimator="straight_through")
        kept = budgets.params_ratio(gates, network.layout)
        penalty = jnp.mean(jnp.stack([jnp.abs(score).sum() for score in jax.tree.leaves(scores)]))
        gates = masks.spread(gates, network.layout)
        return Effective(mix(frozen["parent"], own["params"], gates), {}, gates, kept, penalty)

    return rule
