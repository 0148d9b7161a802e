"""aTLAS (Zhang et al. 2024, arXiv 2407.02880): a learned combination of the stored tasks' changes."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from cwps_jax.core.channels import Layout
from cwps_jax.core.patterns import matches
from cwps_jax.core.trees import Flat, Tree, flatten, unflatten, unite
from cwps_jax.errors import CwpsError
from cwps_jax.methods.method import (
    Begun,
    Clock,
    Effective,
    Finished,
    Group,
    Method,
    Moment,
    Restoring,
    Rule,
    Stage,
    Stored,
    unchanged,
)
from cwps_jax.methods.network import Network
from cwps_jax.methods.optimizers import adam
from cwps_jax.methods.probe import Probe
from cwps_jax.methods.pseudo_labels import PseudoLabels
from cwps_jax.settings import TrainConfig
from cwps_jax.settings.checks import at_least, within


@dataclasses.dataclass(frozen=True)
class Atlas(Method):
    """W = P + sum over stored tasks k of c[k, leaf] (W_k - P), for each leaf of the backbone; c starts at 0.

    It is for few images, because only one coefficient for each leaf and task is trained, and the head. There
    is no zero-shot head as in CLIP: a first stage trains it on the frozen features (a linear probe), and the
    second goes on at the config's rate. If no task is stored yet, only the head is trained. Published
    settings (fredzzhang/atlas): AdamW at 0.1 with weight decay 0.1 and gradients clipped at 1, on a cosine,
    10 epochs. Norm statistics are the task's own.

    Without labels, at test time, the head is that of a stored task and is not trained, and an image's label
    is the network's own answer, if its probability is high enough. The public objective (UFM) takes the
    answer from a weakly augmented view and trains on a strong one, and trusts the first answer for the surest
    images of each class; here one view is both, and no image is trusted from the start.

    Attributes:
        head_share: share of the epochs in which only the head is trained.
        learning_rate: learning rate of the coefficients, at the schedule's peak.
        weight_decay: weight decay of the coefficients.
        tasks: patterns over names of the stored tasks that are combined.
        head_from: the stored task, with the same classes, whose head is kept; needed without labels.
        labels: whether labels are used.
        confidence: least probability of an answer that counts as a label, if labels are not used.
    """

    name: ClassVar[str] = "atlas"

    head_share: float = 0.25
    learning_rate: float = 0.1
    weight_decay: float = 0.1
    tasks: tuple[str, ...] = ("*",)
    head_from: str = ""
    labels: bool = True
    confidence: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "config.atlas.", learning_rate=0, weight_decay=0)
        within(self, "config.atlas.", 0, 1, "head_share", "confidence")
        if not self.labels and not self.head_from:
            raise CwpsError(
                "config.atlas.labels = False: without labels no head can be learned; name the stored task "
                "whose head fits by config.atlas.head_from"
            )

    def check(self, network: Network, training: TrainConfig) -> None:
        if training.epochs < 2:
            raise CwpsError(f"config.epochs = {training.epochs}: atlas needs at least 2, one per stage")

    def stages(self, network: Network, training: TrainConfig) -> tuple[Stage, ...]:
        combined = network.remembered("atlas", lambda: _rule(network))
        optimizer = adam(weight_decay=self.weight_decay, clip=1.0)
        coefficients = {"coefficients": Group(optimizer, self.learning_rate)}
        if self.head_from:
            loss = unchanged if self.labels else PseudoLabels(self.confidence)
            stage = Stage("coefficients", training.epochs, self._combine, combined, coefficients, loss=loss)
            return (stage,)
        first = min(max(1, round(self.head_share * training.epochs)), training.epochs - 1)
        (probe,) = Probe().stages(network, training)
        both = {**probe.groups, **coefficients}
        return (
            dataclasses.replace(probe, name="head", epochs=first),
            Stage("coefficients", training.epochs - first, self._combine, combined, both),
        )

    def store(self, finished: Finished) -> Stored:
        moment = finished.moment
        own = {"params": moment.found["head"], **moment.own, "other": dict(finished.other)}
        return Stored(own, uses=moment.found["uses"])

    def restore(self, view: Restoring) -> dict[str, Any]:
        backbone = view.backbone
        changes = _changes(view.layout, backbone, [flatten(read()) for read in view.uses])
        # As one program, as in training: what XLA fuses may round otherwise than operation by operation.
        combined = jax.jit(_combined)(backbone, changes, view.under("coefficients"))
        return {"params": unflatten({**jax.device_get(combined), **view.under("params")})}

    def _combine(self, moment: Moment) -> Begun:
        layout, tasks = moment.network.layout, moment.pool.tasks
        start = flatten(moment.start["params"])
        head = {path: start[path] for path in layout.head_paths}
        if self.head_from:
            if self.head_from not in tasks:
                raise CwpsError(f"config.atlas.head_from = {self.head_from!r}: no such task in the pool")
            of_task = flatten(tasks[self.head_from]())
            head = {path: _in_shape(of_task[path], leaf) for path, leaf in head.items()}
        names = [name for name in tasks if matches(name, self.tasks)]
        backbone = {path: start[path] for path in layout.backbone_shapes}
        changes = _changes(layout, backbone, [flatten(tasks[name]()) for name in names])
        zeros = {path: np.zeros(len(names), np.float32) for path in layout.backbone_shapes}
        return Begun(
            {**moment.own, "coefficients": unflatten(zeros)},
            {"pretrained": unflatten({**backbone, **head}), "changes": unflatten(changes)},
            {"uses": tuple(names), "head": unflatten(head)},
            carried={"params": unchanged},
        )


def _in_shape(leaf: Any, like: Any) -> np.ndarray:
    """Returns a head's leaf in the shape of one for more classes."""
    grown = np.zeros_like(like)
    grown[tuple(slice(size) for size in np.shape(leaf))] = leaf
    return grown


def _rule(network: Network) -> Rule:
    def rule(own: Tree, frozen: Tree, clock: Clock) -> Effective:
        coefficients, pretrained = flatten(own["coefficients"]), flatten(frozen["pretrained"])
        combined = _combined(pretrained, flatten(frozen["changes"]), coefficients)
        kept = sum(leaf.size for leaf in coefficients.values()) / network.layout.backbone_parameters
        params = unite(frozen["pretrained"], unflatten(combined), own.get("params", {}))
        return Effective(params, kept=jnp.float32(kept))

    return rule


def _changes(layout: Layout, pretrained: Flat, models: list[Mapping[str, Any]]) -> Flat:
    """Returns {path: (tasks, ...)}, the difference of each stored model from the pre-trained one."""
    return {
        path: np.array([np.asarray(model[path]) - pretrained[path] for model in models], np.float32).reshape(
            len(models), *shape
        )
        for path, shape in layout.backbone_shapes.items()
    }


def _combined(pretrained: Flat, changes: Flat, coefficients: Flat) -> Flat:
    return {
        path: pretrained[path] + jnp.einsum("k,k...->...", numbers, changes[path], precision="highest")
        for path, numbers in coefficients.items()
    }
