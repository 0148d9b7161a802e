"""The head first: a task's first epochs train only its new head, so that a random head moves no features.

Linear probing, then fine-tuning (Kumar et al. 2022, arXiv 2202.10054), in front of any method's own stages.
"""

import dataclasses
from collections.abc import Callable

from cwps_jax.core.trees import Tree, select, unite
from cwps_jax.errors import CwpsError
from cwps_jax.methods.method import Begun, Clock, Effective, Group, Method, Moment, Stage
from cwps_jax.methods.network import Network
from cwps_jax.methods.optimizers import by_config
from cwps_jax.settings import TrainConfig


def stages_of(method: Method, network: Network, training: TrainConfig) -> tuple[Stage, ...]:
    """Returns a method's stages, after one of the head alone for `config.head_share` of the epochs.

    Raises:
        CwpsError: the method changes the model, so there is no plain model for which to train a head.
    """
    epochs = round(training.epochs * training.head_share)
    if not epochs:
        return method.stages(network, training)
    if method.wrap(network.model) is not network.model:
        raise CwpsError(
            f"config.head_share = {training.head_share}: {method.name} adds to the model from its first step "
            "on; set it to 0"
        )
    rest = dataclasses.replace(training, epochs=training.epochs - epochs)
    method.check(network, rest)
    first, *others = method.stages(network, rest)
    groups = {"params": Group(by_config(training, network), training.peak)}
    head = Stage("head", epochs, _begin, _with_head, groups, schedule=first.schedule, inference=True)
    return (head, dataclasses.replace(first, begin=_from_head(first.begin)), *others)


def _begin(moment: Moment) -> Begun:
    head = select(moment.start["params"], moment.network.layout.head_paths)
    return Begun({"params": head}, {"pretrained": moment.start["params"]})


def _with_head(own: Tree, frozen: Tree, clock: Clock) -> Effective:
    """The rule of the head's stage: everything else is the pre-trained model's."""
    return Effective(unite(frozen["pretrained"], own["params"]))


def _from_head(begin: Callable[[Moment], Begun]) -> Callable[[Moment], Begun]:
    """Returns how a stage begins from the head that has been trained."""

    def begun(moment: Moment) -> Begun:
        params = unite(moment.start["params"], moment.own["params"])
        return begin(dataclasses.replace(moment, start={**moment.start, "params": params}, own={}))

    return begun
