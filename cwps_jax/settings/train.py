"""`TrainConfig`: how one task is learned."""

import dataclasses
from typing import Any, Literal

import optax

from cwps_jax.core.coding import BITS
from cwps_jax.core.entropy import BY_BUDGET
from cwps_jax.errors import CwpsError
from cwps_jax.settings.checks import at_least, below_one, check_types, within
from cwps_jax.sharding import Rules, check_rules

OF_ITS_OWN = ("learning_rate", "momentum", "weight_decay")  # a given optimizer has them within


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The settings with which one task is learned, for `learn_task`; main's config has the same keys.

    Attributes:
        method: name of a method. From Python also a method with settings, such as
            ``cwps.methods.Lora(rank=4)``; see `cwps_jax.methods`.
        epochs: epochs over all stages together.
        batch_size: images per step, over all devices.
        accumulate: number of parts in which a step's gradient is computed, one after the other. Use it if the
            whole batch does not fit into memory. The step is the same except for dropout and for layers that
            use several images at once, such as batch norm. The number of devices has to divide each part.
        learning_rate: peak learning rate of the model's own leaves, head and norms. One schedule runs over
            all stages. Parameters that a method adds have a learning rate of their own.
        learning_rate_warmup: share of all steps over which the learning rate rises from zero.
        layer_decay: factor of the learning rate from each block to the one before it, in (0, 1]. The head
            learns at the full rate, and the stem learns slowest. See `tracing.parameter_depths`.
        optimizer: "sgd" or "adamw". From Python also an optax transformation such as ``optax.adamw(1e-3)``,
            whose updates are added, times the schedule with a peak of 1. Its learning rate, momentum and
            weight decay are its own; leave the keys of these names at their defaults.
        momentum: momentum of SGD.
        weight_decay: weight decay of kernels only, times the gate of each channel.
        label_smoothing: share of each label that is spread over all classes, in [0, 1). For the default loss.
        ema: decay of a moving average of the trained weights over the last stage's steps, in [0, 1). The
            task keeps the average, which looks back about 1 / (1 - ema) steps. 0 means no average.
        seed: seeds the head, the data order and dropout.
        parallel: "jit" over a mesh of all devices, or "pmap".
        shard: rules for spreading parameters and their states over the devices. Each rule is a pair of a
            pattern over paths of parameters and "split" or "whole", such as ``(("head/*", "whole"),
            ("*kernel", "split"))``; the first that matches counts. Child, parent, scores and optimizer state
            are spread instead of being whole on each device. Needs "jit".
        budget: largest share of the backbone's parameters that the task may keep; 1 means no limit. It is in
            (0, 1], and for methods that choose which parameters to keep.
        byte_budget: largest share of the backbone's bytes that the task may keep; 0 means no limit.
            Everything that is stored counts except the head, over the bytes of the backbone in float32. It
            decides which channels are opened, instead of `budget`. If `row_bits` is 0, it decides the bits,
            and `budget` the channels.
        budgets: several values for `byte_budget`; the task keeps the smallest that is good enough. All share
            the epochs before channels are opened or, if `row_bits` is 0, before weights are rounded.
        tolerance: how far the kept one of `budgets` may be below the best one in validation accuracy.
        head_share: share of the epochs, at the beginning, in which only the task's head is trained.
        row_bits: bits of each stored weight: 32, 16, 8, 4, 3, 2, 1, or 0 for as few as `byte_budget` has. 32
            is plain float32. 16 to 1 store the change since pre-training, with a step size for each output
            channel. Norms and the head have at least 8 bits, norm statistics 16. With 0,
            changes are multiples of one step size, most of them zero, and entropy-coded; statistics of batch
            norms are folded into their scales and biases.
        rounded_share: share of the epochs, at the end, that are trained with rounded weights, at most the
            whole last stage. It is for methods that store channels, and for `row_bits` below 32.
        norm_batches: training batches from which norm statistics are re-estimated after hardening.
        head: name of the model's head, or names of its heads.
        keep_head: whether a task starts with the pre-trained model's head instead of a new one. Its classes
            are then those of that head, in the same order.
        private: further patterns over paths of leaves that the task keeps for itself.
    """

    method: Any = "cwps"
    epochs: int = 30
    batch_size: int = 64
    accumulate: int = 1
    learning_rate: float = 0.01
    learning_rate_warmup: float = 0.0
    layer_decay: float = 1.0
    optimizer: Literal["sgd", "adamw"] | optax.GradientTransformation = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    ema: float = 0.0
    seed: int = 0
    parallel: Literal["jit", "pmap"] = "jit"
    shard: Rules = ()
    budget: float = 1.0
    byte_budget: float = 0.0
    budgets: tuple[float, ...] = ()
    tolerance: float = 0.005
    head_share: float = 0.0
    row_bits: int = 32
    rounded_share: float = 0.75
    norm_batches: int = 20
    head: str | tuple[str, ...] = "head"
    keep_head: bool = False
    private: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_types(self)
        check_rules(self.shard)
        at_least(self, epochs=1, batch_size=1, accumulate=1, norm_batches=1)
        at_least(self, learning_rate=0, weight_decay=0, momentum=0, seed=0)
        within(self, "config.", 0, 1, "learning_rate_warmup", "rounded_share")
        below_one(self, "head_share", "tolerance")
        below_one(self, "label_smoothing", "ema")
        if not 0 < self.layer_decay <= 1:
            raise CwpsError(
                f"config.layer_decay = {self.layer_decay}: must be above 0 and at most 1 (1 means no decay)"
            )
        if self.row_bits not in (*BITS, BY_BUDGET):
            raise CwpsError(
                f"config.row_bits = {self.row_bits}: choose one of {', '.join(map(str, BITS))} bits per "
                "weight, or 0 for as few as config.byte_budget has"
            )
        if self.row_bits == BY_BUDGET and not (self.byte_budget or self.budgets):
            raise CwpsError(
                "config.row_bits = 0: needs config.byte_budget, such as 0.02 of the backbone's bytes"
            )
        chosen = self.row_bits != BY_BUDGET  # by the budget of bytes, which then stands for the other one
        if not 0 <= self.byte_budget <= 1 or (chosen and self.byte_budget and self.budget < 1):
            raise CwpsError(
                f"config.byte_budget = {self.byte_budget}: must be in [0, 1], a share of the backbone's "
                f"bytes, and replaces config.budget ({self.budget}; 1 means no limit)"
            )
        if not 0 < self.budget <= 1:
            raise CwpsError(
                f"config.budget = {self.budget}: must be above 0 and at most 1, a share of the backbone's "
                "parameters (1 means no limit)"
            )
        if self.budgets and self.byte_budget and self.byte_budget not in self.budgets:
            raise CwpsError(
                f"config.budgets = {self.budgets}: replaces config.byte_budget ({self.byte_budget})"
            )
        for one in self.budgets:
            if self.budgets.count(one) > 1:
                raise CwpsError(f"config.budgets = {self.budgets}: names {one} twice; give each once")
            dataclasses.replace(self, budgets=(), byte_budget=one)
        for field in dataclasses.fields(TrainConfig):
            value = getattr(self, field.name)
            if self.optimizer_given and field.name in OF_ITS_OWN and value != field.default:
                raise CwpsError(
                    f"config.{field.name} = {value}: would be ignored, since config.optimizer is an optax "
                    f"transformation; set it in that, and leave config.{field.name} at {field.default}"
                )

    def by_budget(self) -> tuple["TrainConfig", ...]:
        """Returns the config for each of its `budgets`, the largest first; only itself if it has none."""
        largest_first = sorted(self.budgets, reverse=True)
        return tuple(dataclasses.replace(self, budgets=(), byte_budget=one) for one in largest_first) or (
            self,
        )

    @property
    def channel_budget(self) -> float:
        """The budget that channels are opened for: of parameters, or of bytes where these have set bits."""
        return self.budget if self.row_bits == BY_BUDGET else self.byte_budget or self.budget

    @property
    def optimizer_given(self) -> bool:
        """Whether the optimizer is an optax transformation."""
        return isinstance(self.optimizer, optax.GradientTransformation)

    @property
    def peak(self) -> float:
        """The learning rate at the schedule's peak; 1 for a given optimizer, which has its own."""
        return 1.0 if self.optimizer_given else self.learning_rate
