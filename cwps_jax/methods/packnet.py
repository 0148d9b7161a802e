"""PackNet (Mallya and Lazebnik 2018, arXiv 1711.05769): each task trains the weights that are still free."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from cwps_jax.core.channels import Layout
from cwps_jax.core.heads import head_of
from cwps_jax.core.trees import Flat, Tree, flatten, unflatten
from cwps_jax.errors import CwpsError
from cwps_jax.methods.channels import pack_bits, smallest, unpack_bits
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
from cwps_jax.methods.optimizers import by_config, sgd
from cwps_jax.methods.schedules import Steps
from cwps_jax.settings import TrainConfig
from cwps_jax.settings.checks import at_least, within


@dataclasses.dataclass(frozen=True)
class PackNet(Method):
    """One shared network in which every weight of a kernel has one owner, or is free and zero.

    A task trains the free weights from zero, with those of all earlier owners frozen. Then it frees the
    smallest of its own weights again, layer by layer, and trains the others once more. Biases and norms stay
    the pre-trained model's. Published settings (arunmallya/packnet): half of the pre-trained weights are
    freed first, then 0.75 of each task's; 20 epochs of SGD with momentum at 0.001, a tenth of that after 10,
    and 10 more epochs at the lower rate; no weight decay. Differences: the pre-trained model is not trained
    again after its pruning, because its data are gone. The public code keeps the epoch that is best on the
    test set, ours keeps the last one. The head follows the config's own optimizer, on the same schedule.

    Attributes:
        free_share: share of each kernel's pre-trained weights that is freed before the first task; the same
            for all tasks of a pool.
        prune_share: share of its own weights that a task frees again.
        retrain_share: share of the epochs, after pruning, in which the kept weights are trained again.
        learning_rate: learning rate of the free weights at the beginning.
    """

    name: ClassVar[str] = "packnet"
    uses_own_tasks: ClassVar[bool] = True

    free_share: float = 0.5
    prune_share: float = 0.75
    retrain_share: float = 1 / 3
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "config.packnet.", learning_rate=0)
        within(self, "config.packnet.", 0, 1, "free_share", "prune_share", "retrain_share")

    def check(self, network: Network, training: TrainConfig) -> None:
        if training.epochs < 2:
            raise CwpsError(f"config.epochs = {training.epochs}: packnet needs at least 2, one per stage")

    def stages(self, network: Network, training: TrainConfig) -> tuple[Stage, ...]:
        again = min(max(1, round(self.retrain_share * training.epochs)), training.epochs - 1)
        groups = {
            "params": Group(by_config(training, network), training.peak),
            "weights": Group(sgd(0.9), self.learning_rate),
        }
        rule = network.remembered("packnet", lambda: _rule(network))
        settings: dict[str, Any] = {"schedule": Steps(((1 - self.retrain_share) / 2,)), "inference": True}
        return (
            Stage("train", training.epochs - again, self._begin, rule, groups, **settings),
            Stage("retrain", again, self._prune, rule, groups, **settings),
        )

    def store(self, finished: Finished) -> Stored:
        moment = finished.moment
        mine, weights = flatten(moment.frozen["free"]), flatten(moment.own["weights"])
        free = moment.found["free"]
        own = {
            "params": moment.own["params"],
            "other": head_of(moment.network.layout, finished.other),
            "masks": unflatten({path: pack_bits(mine[path][free[path]]) for path in mine}),
            "free": smallest(np.asarray(_count(free))),
            "weights": unflatten({path: np.asarray(weights[path])[mine[path]] for path in mine}),
        }
        return Stored(own, uses=moment.found["uses"])

    def restore(self, view: Restoring) -> dict[str, Any]:
        kernels, free = self._pruned(view.layout, view.pretrained)
        for stored in (*(read() for read in view.used), view.own):
            _place(kernels, free, stored)
        return {"params": unflatten({**view.backbone, **kernels, **view.under("params")})}

    def _pruned(self, layout: Layout, pretrained: Mapping[str, np.ndarray]) -> tuple[Flat, Flat]:
        """Returns the pre-trained kernels with their smallest weights at zero, and the places of these."""
        kernels, free = {}, {}
        for layer in layout.layers:
            kernel = np.array(pretrained[layer.path])
            free[layer.path] = _smallest(kernel, np.ones(kernel.shape, bool), self.free_share)
            kernel[free[layer.path]] = 0
            kernels[layer.path] = kernel
        return kernels, free

    def _begin(self, moment: Moment) -> Begun:
        layout, start = moment.network.layout, flatten(moment.start["params"])
        kernels, free = self._pruned(layout, start)
        for name, read in moment.pool.stored.items():
            stored = read()
            if int(stored["free"]) != _count(free):
                raise CwpsError(
                    f"packnet: config.packnet.free_share = {self.free_share} is not what {name} was learned "
                    "with, or it came from another pool and was learned beside others; begin another pool"
                )
            _place(kernels, free, stored)
        if not _count(free):
            raise CwpsError("packnet: no weight of this backbone is free any longer; begin another pool")
        head = {path: start[path] for path in layout.head_paths}
        rest = {path: leaf for path, leaf in start.items() if path not in head}
        zeros = {path: np.zeros_like(kernel) for path, kernel in kernels.items()}
        return Begun(
            {"params": unflatten(head), "weights": unflatten(zeros)},
            {"taken": unflatten({**rest, **kernels}), "free": unflatten(free)},
            {"free": free, "uses": tuple(moment.pool.stored)},
        )

    def _prune(self, moment: Moment) -> Begun:
        weights, mine = flatten(moment.own["weights"]), {}
        for path, free in moment.found["free"].items():
            mine[path] = free & ~_smallest(np.asarray(weights[path]), free, self.prune_share)
        kept = {path: np.where(mine[path], weights[path], 0) for path in mine}
        own = {"params": moment.own["params"], "weights": unflatten(kept)}
        return Begun(own, {**moment.frozen, "free": unflatten(mine)}, carried={"params": unchanged})


def _rule(network: Network) -> Rule:
    def rule(own: Tree, frozen: Tree, clock: Clock) -> Effective:
        params, mine, weights = (flatten(one) for one in (frozen["taken"], frozen["free"], own["weights"]))
        kept = jnp.float32(0)
        for path, mask in mine.items():
            params[path] = jnp.where(mask, weights[path], params[path])
            kept += jnp.sum(mask, dtype=jnp.float32)
        params.update(flatten(own["params"]))
        return Effective(unflatten(params), kept=kept / network.layout.backbone_parameters)

    return rule


def _count(masks: Flat) -> int:
    return sum(int(np.sum(mask)) for mask in masks.values())


def _place(kernels: Flat, free: Flat, stored: Mapping[str, np.ndarray]) -> None:
    """Puts a stored task's weights in their places, which are then no longer free; in place."""
    for path, mask in free.items():
        places = np.flatnonzero(mask)[unpack_bits(stored[f"masks/{path}"], int(mask.sum()))]
        kernels[path].ravel()[places] = stored[f"weights/{path}"]
        mask.ravel()[places] = False


def _smallest(values: np.ndarray, among: np.ndarray, share: float) -> np.ndarray:
    """Returns the places of a share of some values, the smallest by their absolute values."""
    places = np.flatnonzero(among)
    order = np.argsort(np.abs(values.ravel()[places]), kind="stable")
    found = np.zeros(values.size, bool)
    found[places[order[: round(share * len(places))]]] = True
    return found.reshape(values.shape)
