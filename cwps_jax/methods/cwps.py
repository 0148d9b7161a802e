"""Channel-wise parameter sharing: warm-up, search and soft masks, hard masks (METHOD, "Four stages")."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from cwps_jax.active_gradient import active_gradients
from cwps_jax.core import budgets
from cwps_jax.core import masks as core_masks
from cwps_jax.core.compact import pack, placements, unpack
from cwps_jax.core.entropy import BY_BUDGET
from cwps_jax.core.mixing import mix
from cwps_jax.core.trees import Tree, map_with_path
from cwps_jax.errors import CwpsError
from cwps_jax.methods import channels, weights
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
    unchanged,
)
from cwps_jax.methods.network import Network
from cwps_jax.methods.optimizers import adam, by_config, sgd
from cwps_jax.methods.rounding import check_rounded, learned_rounded
from cwps_jax.methods.whole import finetune_stage
from cwps_jax.search.composite import Candidates, Distance, Granularity, Search, composite
from cwps_jax.search.models import StoredModels
from cwps_jax.settings import TrainConfig
from cwps_jax.settings.checks import at_least, within

_hardened = jax.jit(budgets.harden, static_argnames=("layout", "budget", "estimator", "prices"))


@dataclasses.dataclass(frozen=True)
class Cwps(Method):
    """Channel-wise parameter sharing (ICLR 2025 submission xbXydoejvY), also by layer and by single weight.

    Attributes:
        granularity: the unit of one gate: a "channel", a "layer", or a "weight", which no later task borrows.
        selection: "learned" chooses channels in a soft stage; "moved" opens those that the warm-up moved
            most. "moved" divides the distance by the channel's price. It has no soft stage; the hard stage
            has its epochs. "auto" is "moved" for channels whose bits the byte budget sets (`row_bits` 0), of
            which it is better to store all coarsely than a part finely, and "learned" otherwise.
        lambda_: weight of the sparsity penalty, in [0, 1], if there is no budget.
        budget_rate: change of lambda's base per unit of excess over the budget, over the whole soft stage.
        budget_gain: lambda per unit of excess over the budget.
        estimator: how scores become gates: "annealed" sigmoid or "straight_through" threshold.
        compensate: whether the annealed gates' derivative is HAT's compensated one.
        max_temperature: s_max of the annealed gates.
        score_optimizer: "sgd", or "adam", whose steps do not depend on the number of channels.
        score_learning_rate: peak learning rate of the scores.
        warm_up_share: share of the epochs for the warm-up.
        hard_share: share of the epochs for the hard stage; the soft stage has the rest.
        stage_rates: factors of the learning rate in the warm-up, soft and hard stage.
        search_distance: the distance between channels: "change", "l2" or "cosine"; see `cwps_jax.Search`.
        search_granularity: the unit that has one source: "channel", "layer" or "model"; see
            `cwps_jax.Search`.
        search_candidates: the channels that may be taken: "aligned", "any", "random" or "pretrained".
        search_z: how many standard deviations above chance the agreement of "change" has to be.
    """

    name: ClassVar[str] = "cwps"
    borrows: ClassVar[bool] = True

    granularity: Literal["channel", "layer", "weight"] = "channel"
    selection: Literal["auto", "learned", "moved"] = "auto"
    lambda_: float = 0.5
    budget_rate: float = 3.0
    budget_gain: float = 6.0
    estimator: core_masks.Estimator = "annealed"
    compensate: bool = True
    max_temperature: float = core_masks.MAX_TEMPERATURE
    score_optimizer: Literal["sgd", "adam"] = "adam"
    score_learning_rate: float = 0.01
    warm_up_share: float = 0.2
    hard_share: float = 0.6
    stage_rates: tuple[float, ...] = (1.0, 1.0, 1.0)
    search_distance: Distance = "change"
    search_granularity: Granularity = "channel"
    search_candidates: Candidates = "aligned"
    search_z: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        where = f"config.{self.name}."
        at_least(self, where, score_learning_rate=0, budget_rate=0, budget_gain=0, max_temperature=1)
        within(self, where, 0, 1, "lambda_", "warm_up_share", "hard_share")
        if len(self.stage_rates) != 3 or min(self.stage_rates) < 0:
            raise CwpsError(
                f"{where}stage_rates = {self.stage_rates}: must be three factors of at least 0, for the "
                "warm-up, soft and hard stage"
            )
        if self.selection == "moved" and self.granularity != "channel":
            raise CwpsError(f"{where}selection = 'moved': chooses channels; set granularity to 'channel'")
        if self.warm_up_share + self.hard_share >= 1:
            raise CwpsError(
                f"{where}warm_up_share + hard_share = {self.warm_up_share + self.hard_share}: must be below "
                "1, the soft stage has the rest"
            )
        _ = self.search

    @property
    def search(self) -> Search:
        """The settings of the composite parent model search."""
        return Search(self.search_distance, self.search_granularity, self.search_candidates, self.search_z)

    def opens_moved(self, training: TrainConfig) -> bool:
        """Returns whether the channels are those that the warm-up moved most, without a soft stage."""
        by_bytes = self.granularity == "channel" and training.row_bits == BY_BUDGET
        return self.selection == "moved" or (self.selection == "auto" and by_bytes)

    def check(self, network: Network, training: TrainConfig) -> None:
        if training.byte_budget and self.granularity == "weight":
            raise CwpsError("config.byte_budget: single weights have no price in bytes; set config.budget")
        check_rounded(network, training)
        budgets.check_budget(prices(network, training), training.channel_budget)
        if training.epochs < 3:
            raise CwpsError(f"config.epochs = {training.epochs}: cwps needs at least 3, one per stage")

    def stages(self, network: Network, training: TrainConfig) -> tuple[Stage, ...]:
        # Each stage has an epoch, and all of them together have no more than fine-tuning.
        warm_up = min(max(1, round(training.epochs * self.warm_up_share)), training.epochs - 2)
        hard = min(max(1, round(training.epochs * self.hard_share)), training.epochs - warm_up - 1)
        soft = training.epochs - warm_up - hard
        if self.opens_moved(training):
            soft, hard = 0, hard + soft
        rates = [training.peak * factor for factor in self.stage_rates]
        child = [{"params": Group(by_config(training, network), rate)} for rate in rates]
        scores = adam(b2=0.9) if self.score_optimizer == "adam" else sgd(training.momentum)
        # A short memory: lambda's first jump must not slow the scores down for a thousand steps.
        child[1]["masks"] = Group(scores, self.score_learning_rate)
        # What the soft rule reads: tasks that differ in other settings share its compiled step.
        read = (type(self), self.granularity, self.estimator, self.compensate, self.max_temperature)
        cost = prices(network, training)
        # Per unit of what all channels cost together, so that bytes are steered as fast as parameters.
        steering = [rate / cost.most(network.layout) for rate in (self.budget_rate, self.budget_gain)]
        budget = training.channel_budget
        stages: tuple[Stage, ...] = (
            dataclasses.replace(finetune_stage("warm-up", warm_up, training, network), groups=child[0]),
            Stage(
                "soft",
                soft,
                self._search,
                network.remembered((*read, cost), lambda: self._soft(network, cost)),
                child[1],
                penalty=Penalty(self.lambda_, 0, budget, *steering),
                project=_clip,
            ),
            self.hard_stage(hard, child[2], network, cost),
        )
        stages = tuple(stage for stage in stages if stage.epochs)
        return stages if self.granularity == "weight" else learned_rounded(stages, training, network)

    def hard_stage(
        self, epochs: int, groups: dict[str, Group], network: Network, cost: budgets.Prices
    ) -> Stage:
        """Returns the last stage, in which the gates are fixed and only the open channels are parameters."""
        by_weight = self.granularity == "weight"
        rule = dense_rule(network) if by_weight else compact_rule(network, cost)
        stage = Stage("hard", epochs, self._harden, rule, groups, reestimates_norms=True)
        if by_weight:
            return stage
        return dataclasses.replace(
            stage, context=active_channels, on_device=network.remembered("cast", lambda: _caster(network))
        )

    def store(self, finished: Finished) -> Stored:
        return (weights if self.granularity == "weight" else channels).store_finished(finished)

    def restore(self, view: Restoring) -> dict[str, Any]:
        if self.granularity == "weight":
            return weights.restore_weights(view)
        return channels.restore_channels(view)

    def penalty(self, gates: Tree, scores: Tree, child: Tree) -> jax.Array:
        """Returns the penalty, which is added to the loss times lambda: METHOD's sparsity."""
        return core_masks.sparsity(gates, child)

    def _soft(self, network: Network, cost: budgets.Prices) -> Rule:
        layout = network.layout

        def soft(own: Tree, frozen: Tree, clock: Clock) -> Effective:
            child, scores = own["params"], own["masks"]
            gates = core_masks.spread(
                core_masks.gates(
                    scores,
                    core_masks.temperature(clock.batch, clock.batches, self.max_temperature),
                    estimator=self.estimator,
                    compensate=self.compensate,
                    maximum=self.max_temperature,
                ),
                layout,
            )
            kept = budgets.params_ratio(core_masks.gates(scores, estimator=self.estimator), layout, cost)
            params = mix(frozen["parent"], child, gates)
            return Effective(params, gates=gates, kept=kept, penalty=self.penalty(gates, scores, child))

        return soft

    def _search(self, moment: Moment) -> Begun:
        layout, child = moment.network.layout, moment.own["params"]
        search = dataclasses.replace(self.search, seed=moment.training.seed)
        parent, sources = composite(layout, child, moment.pool.models, search)
        scores = core_masks.init_scores(layout, self.estimator, self.granularity)
        return Begun(
            {"params": child, "masks": jax.device_get(scores)},
            {"parent": parent},
            {"sources": sources},
            carried={"params": unchanged},
        )

    def _harden(self, moment: Moment) -> Begun:
        network, child, training = moment.network, moment.own["params"], moment.training
        found: Mapping[str, Any] = {}
        estimator: core_masks.Estimator = "annealed"
        cost = prices(network, training, moment.pool.models)
        if self.opens_moved(training):
            begun = self._search(moment)
            scores = budgets.moved(child, begun.frozen["parent"], network.layout, cost)
            found, moment = begun.found, dataclasses.replace(moment, frozen=begun.frozen)
        else:
            scores, estimator = moment.own["masks"], self.estimator
        budget = training.channel_budget
        gates = _hardened(scores, network.layout, budget, estimator=estimator, prices=cost)
        gates = jax.device_get(core_masks.spread(gates, network.layout))
        frozen = {"parent": moment.frozen["parent"], "gates": gates}
        if self.granularity == "weight":
            return Begun({"params": child}, frozen, found, carried={"params": unchanged})
        placed = placements(network.layout, gates, network.capacity(gates))
        packed = lambda tree: pack(tree, gates, placed)
        own = {"params": packed(child)}
        return Begun(own, {**frozen, "placed": placed}, found, carried={"params": packed})


def prices(network: Network, training: TrainConfig, models: StoredModels | None = None) -> budgets.Prices:
    """Returns the prices of channels: bytes if the config has a budget of bytes, otherwise parameters.

    Args:
        network: the backbone.
        training: the task's config.
        models: the models whose channels may be borrowed; by default few of them.
    """
    layout = network.layout
    if not training.byte_budget or training.row_bits == BY_BUDGET:
        return budgets.parameter_prices(layout)
    newest = max((int(owner.max()) for owner in models.owner.values()), default=0) if models else 0
    owner_bytes = np.min_scalar_type(newest).itemsize
    return budgets.byte_prices(layout, training.row_bits, network.statistics, owner_bytes)


def compact_rule(network: Network, cost: budgets.Prices) -> Rule:
    """Returns the rule of a packed child, see `core.compact`."""

    def compact(own: Tree, frozen: Tree, clock: Clock) -> Effective:
        gates = frozen["gates"]
        params = unpack(own["params"], frozen["parent"], gates, frozen["placed"])
        return Effective(params, kept=budgets.params_ratio(gates, network.layout, cost))

    return network.remembered(("compact", cost), lambda: compact)


def dense_rule(network: Network) -> Rule:
    """Returns the rule of a whole child whose closed channels or weights are held."""

    def dense(own: Tree, frozen: Tree, clock: Clock) -> Effective:
        gates = frozen["gates"]
        kept = budgets.params_ratio(gates, network.layout)
        return Effective(mix(frozen["parent"], own["params"], gates), gates=gates, kept=kept)

    return network.remembered("dense", lambda: dense)


def active_channels(effective: Effective, own: Tree, frozen: Tree) -> contextlib.AbstractContextManager[None]:
    """The context in which a packed child's layers compute only the weight gradients of its channels."""
    return active_gradients(
        effective.params, own["params"], frozen["parent"], frozen["gates"], frozen["placed"]
    )


def _caster(network: Network):
    """Returns a function that casts the parent of the frozen tree to the types that the model uses.

    Selection commutes with a cast, so that the stage computes the same to the bit from half the bytes.
    """

    def on_device(frozen: Tree) -> Tree:
        types = network.cast_types
        cast = lambda path, leaf: np.asarray(leaf).astype(types[path]) if path in types else leaf
        return {**frozen, "parent": map_with_path(cast, frozen["parent"])}

    return on_device


def _clip(own: Tree) -> Tree:
    return {**own, "masks": core_masks.clip(own["masks"])}
