"""`TrainConfig`: how one task is learned."""

import dataclasses
from typing import Literal

from cwps_jax.config.checks import at_least, below_one, check_types, within
from cwps_jax.core.masks import MAX_TEMPERATURE, Estimator
from cwps_jax.errors import CwpsError
from cwps_jax.search.composite import Candidates, Distance, Granularity, Search


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How one task is learned. `learn_task` takes it; main's config has the same keys.

    Attributes:
        method: "cwps", "finetune" (every channel its own) or "probe" (the head alone).
        epochs: epochs over all stages together.
        batch_size: images a step, over all devices.
        learning_rate: peak of the one cosine schedule that runs over all stages.
        learning_rate_warmup: share of all steps over which the rate rises from zero.
        stage_rates: factors of it in the warm-up, soft and hard stage of cwps.
        layer_decay: factor of the rate from each block of the model to the one before it, in (0, 1]: the head
            learns at the full rate, the stem slowest. Scores are left out. See `tracing.parameter_depths`.
        optimizer: "sgd" or "adamw".
        momentum: of SGD.
        weight_decay: on kernels only, times the gate of each channel.
        label_smoothing: share of each label that is spread over all classes, in [0, 1). For the default loss.
        ema: decay of the moving average of child and statistics over the last stage's steps, in [0, 1). The
            average is what the task keeps; it looks back about 1 / (1 - ema) steps. 0 is no average.
        seed: of the head's start, the data order and dropout.
        parallel: "jit" over a mesh of all devices, or "pmap".
        lambda_: weight of the sparsity penalty, in [0, 1], where there is no budget.
        budget: largest params_ratio that the task may keep, in (0, 1]. Below 1 it sets lambda, step by step;
            at 1 there is no limit.
        budget_rate: how fast lambda's base follows the budget, per unit of excess over the whole soft stage.
        budget_gain: lambda per unit of excess over the budget.
        estimator: of the gates: "annealed" sigmoid or "straight_through" threshold.
        compensate: whether the annealed gates' derivative is HAT's compensated one.
        max_temperature: s_max of the annealed gates.
        score_optimizer: "sgd", or "adam", which does not depend on how many channels there are.
        score_learning_rate: peak rate of the scores.
        warm_up_share, hard_share: shares of the epochs; the soft stage has the rest.
        hard_form: "compact" trains the open channels alone in the hard stage: gradients, moments and weight
            gradients' work for them only. "dense" keeps the whole child and holds what is closed: the same
            numbers up to rounding, slower.
        norm_batches: training batches from which norm statistics are re-estimated after hardening.
        search_distance, search_granularity, search_candidates, search_z: see `Search`.
        head: name of the model's head.
        private: further patterns over paths of leaves that the task keeps for itself.
    """

    method: Literal["cwps", "finetune", "probe"] = "cwps"
    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 0.01
    learning_rate_warmup: float = 0.0
    stage_rates: tuple[float, ...] = (1.0, 1.0, 1.0)
    layer_decay: float = 1.0
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    ema: float = 0.0
    seed: int = 0
    parallel: Literal["jit", "pmap"] = "jit"
    lambda_: float = 0.5
    budget: float = 1.0
    budget_rate: float = 3.0
    budget_gain: float = 6.0
    estimator: Estimator = "annealed"
    compensate: bool = True
    max_temperature: float = MAX_TEMPERATURE
    score_optimizer: Literal["sgd", "adam"] = "adam"
    score_learning_rate: float = 0.01
    warm_up_share: float = 0.25
    hard_share: float = 0.25
    hard_form: Literal["compact", "dense"] = "compact"
    norm_batches: int = 20
    search_distance: Distance = "change"
    search_granularity: Granularity = "channel"
    search_candidates: Candidates = "aligned"
    search_z: float = 3.0
    head: str = "head"
    private: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_types(self)
        at_least(self, epochs=1, batch_size=1, norm_batches=1)
        at_least(self, learning_rate=0, weight_decay=0, momentum=0, score_learning_rate=0, seed=0)
        at_least(self, budget_rate=0, budget_gain=0, max_temperature=1)
        within(self, 0, 1, "lambda_", "learning_rate_warmup", "warm_up_share", "hard_share")
        below_one(self, "label_smoothing", "ema")
        if len(self.stage_rates) != 3 or min(self.stage_rates) < 0:
            raise CwpsError(
                f"config.stage_rates = {self.stage_rates}: must be three factors of at least 0, for the "
                "warm-up, soft and hard stage"
            )
        if not 0 < self.layer_decay <= 1:
            raise CwpsError(
                f"config.layer_decay = {self.layer_decay}: must be above 0 and at most 1 (1 is no decay)"
            )
        if not 0 < self.budget <= 1:
            raise CwpsError(
                f"config.budget = {self.budget}: must be above 0 and at most 1, a share of the backbone's "
                "parameters (1 is no limit)"
            )
        if self.warm_up_share + self.hard_share >= 1:
            raise CwpsError(
                f"config.warm_up_share + config.hard_share = {self.warm_up_share + self.hard_share}: "
                "must be below 1, the soft stage has the rest"
            )
        if self.method == "cwps" and self.epochs < 3:
            raise CwpsError(f"config.epochs = {self.epochs}: cwps needs at least 3, one a stage")
        _ = self.search

    @property
    def search(self) -> Search:
        """The settings of the composite parent model search."""
        return Search(self.search_distance, self.search_granularity, self.search_candidates, self.search_z)
