"""The stage in which a task owns its whole network: fine-tuning, and the warm-up of cwps."""

from cwps_jax.core.trees import Tree
from cwps_jax.methods.method import Begun, Clock, Effective, Group, Moment, Stage
from cwps_jax.methods.network import Network
from cwps_jax.methods.optimizers import by_config
from cwps_jax.settings import TrainConfig


def finetune_stage(name: str, epochs: int, training: TrainConfig, network: Network) -> Stage:
    """Returns a stage that trains every leaf, from the pre-trained model on."""
    groups = {"params": Group(by_config(training, network), training.peak)}
    return Stage(name, epochs, _begin, whole_child, groups)


def whole_child(own: Tree, frozen: Tree, clock: Clock) -> Effective:
    """The rule of fine-tuning: every leaf is the task's own."""
    return Effective(own["params"])


def _begin(moment: Moment) -> Begun:
    return Begun({"params": moment.start["params"]})
