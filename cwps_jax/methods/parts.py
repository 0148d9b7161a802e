"""Methods of one stage that train part of a network, or numbers from which its leaves are computed.

Most compared methods are of this kind: a bias, a norm, a low-rank change, a mask. A task stores the trained
arrays. Its network is computed from these and the pre-trained model, by one function for training and for
restoring.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from cwps_jax.core.channels import Layout
from cwps_jax.core.heads import head_of
from cwps_jax.core.trees import Flat, Tree, flatten, unflatten, unite
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
from cwps_jax.methods.optimizers import by_config
from cwps_jax.methods.schedules import cosine
from cwps_jax.settings import TrainConfig


@dataclasses.dataclass(frozen=True)
class Parts(Method):
    """A method of one stage that starts from the pre-trained model.

    Attributes:
        schedule: the schedule of all learning rates.
        inference: whether the model runs as in evaluation in training, too: norms keep the pre-trained
            model's statistics.
    """

    schedule: ClassVar[Any] = staticmethod(cosine)
    inference: ClassVar[bool] = False

    def trained(self, layout: Layout) -> tuple[str, ...]:
        """Returns the paths of the backbone's own leaves that are trained directly; the head always is."""
        return ()

    def added(self, moment: Moment) -> Tree:
        """Returns the other trained collections at their start."""
        return {}

    def groups(self, network: Network, training: TrainConfig) -> Mapping[str, Group]:
        """Returns the training of the other collections."""
        return {}

    def changed(self, layout: Layout, own: Tree, pretrained: Flat) -> Flat:
        """Returns {path: leaf} of the backbone's leaves that are computed from the other collections.

        Args:
            layout: the backbone's.
            own: the trained tree, or the restored one, see `unpacked`.
            pretrained: {path: leaf} of the pre-trained backbone.
        """
        return {}

    def penalised(self, own: Tree, network: Network) -> dict[str, Any]:
        """Returns `kept` of `Effective`, and `penalty` if there is one."""
        kept = sum(leaf.size for leaf in jax.tree.leaves(own)) - network.layout.head_parameters
        return {"kept": jnp.float32(kept / network.layout.backbone_parameters)}

    def penalty(self, training: TrainConfig) -> Penalty | None:
        """Returns the weight of the penalty."""
        return None

    def packed(self, layout: Layout, own: Tree) -> Tree:
        """Returns the other trained collections in the form in which they are stored."""
        return own

    def unpacked(self, view: Restoring) -> Tree:
        """Returns the other collections from the stored arrays, in the form for `changed`."""
        names = dict.fromkeys(path.partition("/")[0] for path in view.own)
        return {name: unflatten(view.under(name)) for name in names if name not in ("params", "other")}

    def stages(self, network: Network, training: TrainConfig) -> tuple[Stage, ...]:
        params = Group(by_config(training, network), training.peak)
        rule = network.remembered((self, "rule"), lambda: self._rule(network))
        stage = Stage(
            self.name,
            training.epochs,
            self._begin,
            rule,
            {"params": params, **self.groups(network, training)},
            schedule=self.schedule,
            penalty=self.penalty(training),
            inference=self.inference,
        )
        return (stage,)

    def store(self, finished: Finished) -> Stored:
        layout = finished.moment.network.layout
        own = {name: tree for name, tree in finished.moment.own.items() if name != "params"}
        other = head_of(layout, finished.other) if self.inference else dict(finished.other)
        return Stored({"params": finished.moment.own["params"], "other": other, **self.packed(layout, own)})

    def restore(self, view: Restoring) -> dict[str, Any]:
        changed = jax.device_get(_program(self, view.layout)(self.unpacked(view), dict(view.pretrained)))
        return {"params": unflatten({**view.backbone, **changed, **view.under("params")})}

    def _begin(self, moment: Moment) -> Begun:
        layout, start = moment.network.layout, flatten(moment.start["params"])
        paths = {*self.trained(layout), *layout.head_paths}
        own = {
            "params": unflatten({path: start[path] for path in start if path in paths}),
            **self.added(moment),
        }
        rest = {path: leaf for path, leaf in start.items() if path not in paths}
        return Begun(own, {"pretrained": unflatten(rest)})

    def _rule(self, network: Network) -> Rule:
        def rule(own: Tree, frozen: Tree, clock: Clock) -> Effective:
            pretrained = flatten(frozen["pretrained"])
            changed = self.changed(network.layout, own, pretrained)
            params = unite(unflatten({**pretrained, **changed}), own["params"])
            return Effective(params, **self.penalised(own, network))

        return rule


@functools.lru_cache(maxsize=64)
def _program(method: Parts, layout: Layout) -> Callable[[Tree, Flat], Flat]:
    """Returns `Parts.changed` as one program, the same one for all tasks."""
    # As in training: what XLA fuses may round otherwise than operation by operation.
    return jax.jit(functools.partial(method.changed, layout))


def norm_leaves(layout: Layout) -> tuple[str, ...]:
    """Returns the paths of the norms' scales and shifts: private leaves called so."""
    return tuple(path for path in layout.private_paths if path.rpartition("/")[2] in ("scale", "bias"))


def numbers(shape: tuple[int, ...], value: float) -> np.ndarray:
    """Returns a float32 array of one value."""
    return np.full(shape, value, np.float32)
