"""The protocol of every sharing method, so that one trainer, one pool and one accounting serve them all.

A method is a frozen dataclass whose fields are its settings. A task's *own tree* holds the trained arrays,
{collection: nested dict of arrays}, such as {"params": ..., "masks": ...}; the *frozen tree* holds the other
arrays that the rule reads. A *rule* computes the backbone's parameters from both.
"""

import abc
import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

from cwps_jax.core.channels import Layout
from cwps_jax.core.trees import Tree
from cwps_jax.methods.network import Network
from cwps_jax.methods.pooled import Pooled
from cwps_jax.methods.schedules import Schedule, cosine
from cwps_jax.settings import TrainConfig
from cwps_jax.settings.checks import check_types


class Clock(NamedTuple):
    """The place of a step in its epoch, traced: its number from 0, and the number of steps."""

    batch: jax.Array
    batches: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Effective:
    """The result of a rule.

    Attributes:
        params: nested dict, the plain backbone's parameters.
        added: {collection: tree}, additional collections that the model of `Method.wrap` reads.
        gates: nested dict, the gates behind `params`; closed channels are not moved. None holds nothing.
        kept: float32 (), the share of the backbone that the task would keep now (params_ratio); None for all.
        penalty: float32 (), added to the loss times lambda; None for no penalty.
    """

    params: Tree
    added: Tree = dataclasses.field(default_factory=dict)
    gates: Tree | None = None
    kept: jax.Array | None = None
    penalty: jax.Array | None = None


Rule = Callable[[Tree, Tree, Clock], Effective]
Loss = Callable[[Any, Mapping[str, jax.Array]], jax.Array]


class Group(NamedTuple):
    """The training of one collection of a task's own tree.

    Attributes:
        optimizer: an optimizer without a learning rate; its `update` may take `gates=`. Equal settings should
            give the same object, so that tasks share a compiled step.
        rate: its learning rate at the schedule's peak.
    """

    optimizer: optax.GradientTransformation
    rate: float


class Penalty(NamedTuple):
    """The weight of a rule's penalty, lambda.

    Attributes:
        weight: lambda, if there is no budget.
        free_epochs: epochs of the stage before it counts.
        budget: largest `Effective.kept`; below 1 it steers lambda step by step, see `core.budgets.steer`.
        budget_rate: change of lambda's base per unit of excess, over the whole stage.
        budget_gain: lambda per unit of excess.
    """

    weight: float
    free_epochs: int = 0
    budget: float = 1.0
    budget_rate: float = 0.0
    budget_gain: float = 0.0


@dataclasses.dataclass(frozen=True)
class Moment:
    """The state of a task's training when a stage begins; all arrays are on the host.

    Attributes:
        network: the backbone.
        pool: the stored models.
        training: the task's config.
        start: {collection: tree}, the pre-trained model's variables, with the task's new head.
        own: the task's own tree at the end of the stage before; empty before the first.
        frozen: the frozen tree of that stage.
        found: findings of the stages so far for later ones and for the pool, such as the search's sources.
    """

    network: Network
    pool: Pooled
    training: TrainConfig
    start: Tree
    own: Tree
    frozen: Tree
    found: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Begun:
    """The trees with which a stage begins.

    Attributes:
        own: its trained tree, {collection: tree}.
        frozen: the frozen tree for its rule.
        found: findings to be added to `Moment.found`.
        carried: {collection: a function from a tree like the earlier collection to one like the new}. These
            collections keep their optimizer's moments, if they fit; the others start again.
    """

    own: Tree
    frozen: Tree = dataclasses.field(default_factory=dict)
    found: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    carried: Mapping[str, Callable[[Tree], Tree]] = dataclasses.field(default_factory=dict)


def no_context(effective: Effective, own: Tree, frozen: Tree) -> contextlib.AbstractContextManager[None]:
    """The context of a stage that changes nothing about the model's layers."""
    return contextlib.nullcontext()


def unchanged(given: Any, *beside: Any) -> Any:
    """Returns its first argument."""
    return given


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of training, with one compiled step for all tasks whose static parts are equal.

    Attributes:
        name: its name, for progress and metrics.
        epochs: number of epochs.
        begin: from the `Moment` to what the stage begins with.
        rule: from a task's own tree and the frozen tree to the arguments of the model; jitted, and equal for
            equal settings.
        groups: {collection: how it is trained}.
        penalty: the weight of the rule's penalty; None if it has none.
        schedule: a factor of all rates over the progress of the whole task, from 0 to 1.
        inference: whether the model runs as in evaluation: stored norm statistics, no dropout.
        reestimates_norms: whether norm statistics are estimated again before the first step.
        context: from (the rule's result, own, frozen) to a context manager around the model.
        loss: from the task's loss to the stage's, both functions of (outputs, batch) to one value per item.
        on_device: from the frozen tree on the host to the one for the steps, which may have other types.
        project: applied to the task's own tree after each update.
        seen: from own and frozen tree to the one that rule and context use in training, such as a rounded own
            tree.
    """

    name: str
    epochs: int
    begin: Callable[[Moment], Begun]
    rule: Rule
    groups: Mapping[str, Group]
    penalty: Penalty | None = None
    schedule: Schedule = cosine
    inference: bool = False
    reestimates_norms: bool = False
    context: Callable[[Effective, Tree, Tree], contextlib.AbstractContextManager[Any]] = no_context
    loss: Callable[[Loss], Loss] = unchanged
    on_device: Callable[[Tree], Tree] = unchanged
    project: Callable[[Tree], Tree] = unchanged
    seen: Callable[[Tree, Tree], Tree] = unchanged


@dataclasses.dataclass(frozen=True)
class Finished:
    """A task after its last stage; all arrays are on the host.

    Attributes:
        moment: the last own and frozen tree, and all findings.
        params: the plain backbone's parameters, by the last rule.
        gates: nested dict, the last rule's gates; empty if it has none.
        other: the model's other collections, such as batch_stats.
    """

    moment: Moment
    params: Tree
    gates: Tree
    other: Tree


@dataclasses.dataclass(frozen=True)
class Stored:
    """The arrays that the pool stores of a task.

    Attributes:
        own: nested dict: "params", leaves of the plain model that are stored as they are; "other", its other
            collections; and whatever else the method needs, such as "masks".
        rows: {path of a leaf: (rows, fan-in)}, channels that later tasks may borrow; empty for none.
        uses: names of other stored versions that are needed to restore the task, besides the rows' owners.
        step: the step size of `core.entropy` in training.
    """

    own: Tree
    rows: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    uses: tuple[str, ...] = ()
    step: Any = None


@dataclasses.dataclass(frozen=True)
class Restoring:
    """The arrays from which a stored task is restored.

    Attributes:
        layout: the backbone's.
        identity: number of the version, by which its own rows are known.
        own: {path: array}, the content of `Stored.own`.
        pretrained: the pre-trained model's leaves, a flat dict.
        rows: from an owner's number to its stored rows.
        uses: for each of `Stored.uses` a function that returns its plain parameters.
        used: for each of `Stored.uses` a function that returns its stored arrays, a flat dict.
    """

    layout: Layout
    identity: int
    own: Mapping[str, np.ndarray]
    pretrained: Mapping[str, np.ndarray]
    rows: Callable[[int], Mapping[str, np.ndarray]]
    uses: tuple[Callable[[], Tree], ...] = ()
    used: tuple[Callable[[], Mapping[str, np.ndarray]], ...] = ()

    @property
    def backbone(self) -> dict[str, np.ndarray]:
        """The pre-trained model's leaves without its head's."""
        return {path: self.pretrained[path] for path in self.layout.backbone_shapes}

    def under(self, key: str) -> dict[str, np.ndarray]:
        """Returns the leaves of one of the stored collections, by their paths in it."""
        within = f"{key}/"
        return {path.removeprefix(within): self.own[path] for path in self.own if path.startswith(within)}


@dataclasses.dataclass(frozen=True)
class Method(abc.ABC):
    """A sharing method; its subclasses are dataclasses of their settings.

    Attributes:
        name: its name in configs, results and the pool.
        uses_own_tasks: whether a task needs the earlier tasks of the same method to be restored.
        borrows: whether it takes channels of other tasks, so that its result depends on their models.
    """

    name: ClassVar[str] = ""
    uses_own_tasks: ClassVar[bool] = False
    borrows: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_types(self, f"config.{self.name}.")

    def check(self, network: Network, training: TrainConfig) -> None:
        """Raises CwpsError if the method cannot serve this backbone or config."""
        return  # it serves all, unless a method says otherwise

    @abc.abstractmethod
    def stages(self, network: Network, training: TrainConfig) -> tuple[Stage, ...]:
        """Returns the stages of one task."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """Returns the model for a task's variables: the plain one unless the method changes it."""
        return model

    @abc.abstractmethod
    def store(self, finished: Finished) -> Stored:
        """Returns the arrays that the pool stores of a task."""

    @abc.abstractmethod
    def restore(self, view: Restoring) -> dict[str, Any]:
        """Returns {collection: tree} of a stored task: "params", and other collections of `wrap`'s model.

        This defines a task's model: the evaluated model is the stored one.
        """
