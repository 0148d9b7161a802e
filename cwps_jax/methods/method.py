"""The protocol that every sharing method keeps, so that one trainer serves them all."""

import dataclasses
from collections.abc import Callable, Mapping

import jax

from cwps_jax.config import TrainConfig
from cwps_jax.core import masks
from cwps_jax.core.channels import Layout
from cwps_jax.core.compact import Placement
from cwps_jax.core.trees import Tree
from cwps_jax.search.composite import Source
from cwps_jax.search.models import StoredModels


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Frozen:
    """What a stage reads and never trains.

    Attributes:
        parent: nested dict, the layers' leaves of the (composite) parent.
        gates: nested dict, hard gates.
        sources: {path of a kernel: `Source`}, where the parent's channels came from.
        placed: {path of a leaf: `Placement`}, where a packed child's channels belong; empty for a whole one.
    """

    parent: Tree = dataclasses.field(default_factory=dict)
    gates: Tree = dataclasses.field(default_factory=dict)
    sources: Mapping[str, Source] = dataclasses.field(default_factory=dict)
    placed: Mapping[str, Placement] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Pooled:
    """The models that exist so far, as a stage may see them.

    Attributes:
        models: the models, oldest first and the pre-trained one at 0.
        names: their names, as the pool knows them.
    """

    models: StoredModels
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Moment:
    """Where a task's training stands when a stage begins.

    Attributes:
        layout: the backbone's layout.
        pool: the stored models.
        config: the task's config.
        child: nested dict, the child's parameters.
        masks: nested dict, the scores.
        frozen: what the stage before this one read.
    """

    layout: Layout
    pool: Pooled
    config: TrainConfig
    child: Tree
    masks: Tree
    frozen: Frozen


Effective = Callable[[Tree, Tree, Frozen, jax.Array], tuple[Tree, Tree | None]]
Begin = Callable[[Moment], tuple[Tree, Frozen]]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of training, with one compiled step.

    Attributes:
        name: for progress and metrics.
        epochs: how many.
        effective: the rule: (child, masks, frozen, temperature) to the plain backbone's parameters and the
            gates behind them, or None where every channel is the child's.
        begin: what happens before the first step: returns masks and frozen.
        penalised: whether lambda * sparsity is added to the loss.
        trains_backbone: False trains the head alone, with norms in inference mode.
        reestimates_norms: whether norm statistics are estimated anew before the first step.
        compact: whether the child is packed when the stage begins, so that only the channels whose gates are
            open are parameters; see `core.compact`.
    """

    name: str
    epochs: int
    effective: Effective
    begin: Begin
    penalised: bool = False
    trains_backbone: bool = True
    reestimates_norms: bool = False
    compact: bool = False


@dataclasses.dataclass(frozen=True)
class Method:
    """A sharing method: its name and its stages, which end with the hard gates in `Frozen`."""

    name: str
    stages: tuple[Stage, ...]


def all_open(moment: Moment) -> tuple[Tree, Frozen]:
    """Begins a stage in which the task owns every channel."""
    return {}, Frozen(gates=masks.all_gates(moment.layout, True))


def whole_child(child: Tree, masks: Tree, frozen: Frozen, temperature: jax.Array) -> tuple[Tree, Tree | None]:
    """The rule of fine-tuning: every channel is the child's."""
    return child, None
