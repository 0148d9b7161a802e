"""aTLAS (Zhang et al. 2024, arXiv 2407.02880): a learned combination of the stored tasks' changes."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from cwps_jax.core.channels import Layout
from cwps_jax.core.patterns import matches
from cwps_jax.core.trees import Flat, Tree, flatten, merge, unflatten
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
from cwps_jax.methods.optimizers import adam, by_config
from cwps_jax.settings import TrainConfig
from cwps_jax.settings.checks import at_least, within


@dataclasses.dataclass(frozen=True)
class Atlas(Method):
    """W = P + sum over stored tasks k of c[k, leaf] (W_k - P), for each leaf of the backbone; c starts at 0.

    For few images: one coefficient a leaf and task is all that is trained, beside the head. There is no
    zero-shot head here as CLIP has: a first stage fits it to the frozen features (a linear probe), then it
    goes on at the config's rate. Published settings (fredzzhang/atlas): AdamW at 0.1 with weight decay 0.1
    on a cosine, 10 epochs; gradients clipped at 1, which ours are not. Norm statistics are the task's own.

    Attributes:
        head_share: share of the epochs for the head alone.
        learning_rate: of the coefficients, at the schedule's peak.
        weight_decay: of the coefficients.
        tasks: patterns over names of the stored tasks that are combined.
    """

    name: ClassVar[str] = "atlas"

    head_share: float = 0.25
    learning_rate: float = 0.1
    weight_decay: float = 0.1
    tasks: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "config.atlas.", learning_rate=0, weight_decay=0)
        within(self, "config.atlas.", 0, 1, "head_share")

    def check(self, network: Network, training: TrainConfig) -> None:
        if training.epochs < 2:
            raise CwpsError(f"config.epochs = {training.epochs}: atlas needs at least 2, one a stage")

    def stages(self, network: Network, training: TrainConfig) -> tuple[Stage, ...]:
        first = min(max(1, round(self.head_share * training.epochs)), training.epochs - 1)
        head = {"params": Group(by_config(training, network), training.learning_rate)}
        both = {**head, "coefficients": Group(adam(weight_decay=self.weight_decay), self.learning_rate)}
        probed = network.remembered("atlas head", lambda: _head_rule)
        rule = network.remembered("atlas", lambda: _rule(network))
        return (
            Stage("head", first, _begin, probed, head, inference=True),
            Stage("coefficients", training.epochs - first, self._combine, rule, both),
        )

    def store(self, finished: Finished) -> Stored:
        own = finished.moment.own
        return Stored({**own, "other": dict(finished.other)}, uses=finished.moment.found["uses"])

    def restore(self, view: Restoring) -> dict[str, Any]:
        backbone = {path: view.pretrained[path] for path in view.layout.backbone_shapes}
        changes = _changes(view.layout, backbone, [flatten(read()) for read in view.uses])
        # As one program, as in training: what XLA fuses may round otherwise than operation by operation.
        combined = jax.jit(_combined)(backbone, changes, view.under("coefficients"))
        return {"params": unflatten({**jax.device_get(combined), **view.under("params")})}

    def _combine(self, moment: Moment) -> Begun:
        names = [name for name in moment.pool.tasks if matches(name, self.tasks)]
        if not names:
            raise CwpsError(
                "atlas combines what stored tasks have learned, and the pool has none that "
                f"config.atlas.tasks = {self.tasks} matches; learn one by another method first"
            )
        layout, frozen = moment.network.layout, flatten(moment.frozen["pretrained"])
        changes = _changes(layout, frozen, [flatten(moment.pool.tasks[name]()) for name in names])
        zeros = {path: np.zeros(len(names), np.float32) for path in layout.backbone_shapes}
        return Begun(
            {"params": moment.own["params"], "coefficients": unflatten(zeros)},
            {"pretrained": unflatten(frozen), "changes": unflatten(changes)},
            {"uses": tuple(names)},
            carried={"params": unchanged},
        )


def _begin(moment: Moment) -> Begun:
    start, heads = flatten(moment.start["params"]), moment.network.layout.head_paths
    backbone = {path: leaf for path, leaf in start.items() if path not in heads}
    head = unflatten({path: start[path] for path in heads})
    return Begun({"params": head}, {"pretrained": unflatten(backbone)})


def _head_rule(own: Tree, frozen: Tree, clock: Clock) -> Effective:
    return Effective(merge(frozen["pretrained"], own["params"]), kept=jnp.float32(0))


def _rule(network: Network) -> Rule:
    def rule(own: Tree, frozen: Tree, clock: Clock) -> Effective:
        coefficients = flatten(own["coefficients"])
        combined = _combined(flatten(frozen["pretrained"]), flatten(frozen["changes"]), coefficients)
        kept = sum(leaf.size for leaf in coefficients.values()) / network.layout.backbone_parameters
        return Effective(merge(unflatten(combined), own["params"]), kept=jnp.float32(kept))

    return rule


def _changes(layout: Layout, pretrained: Flat, models: list[Mapping[str, Any]]) -> Flat:
    """Returns {path: (tasks, ...)}, how each stored model differs from the pre-trained one."""
    return {
        path: np.stack([np.asarray(model[path]) - pretrained[path] for model in models])
        for path in layout.backbone_shapes
    }


def _combined(pretrained: Flat, changes: Flat, coefficients: Flat) -> Flat:
    return {
        path: leaf + jnp.einsum("k,k...->...", coefficients[path], changes[path], precision="highest")
        for path, leaf in pretrained.items()
    }
