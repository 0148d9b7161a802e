"""L2P, learning to prompt (Wang et al. 2022, arXiv 2112.08654), for a known task: prompts chosen by keys."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import numpy as np

from cwps_jax.core.trees import Tree, flatten
from cwps_jax.errors import CwpsError
from cwps_jax.methods.method import Group, Moment
from cwps_jax.methods.network import Network
from cwps_jax.methods.optimizers import adam
from cwps_jax.methods.prompts import Prompted, Prompting
from cwps_jax.methods.schedules import constant
from cwps_jax.settings import TrainConfig
from cwps_jax.settings.checks import at_least


@dataclasses.dataclass(frozen=True)
class L2P(Prompting):
    """Prompts before the first block of a frozen ViT; `methods.prompts.Prompted` says how they are chosen.

    A task has a pool of prompts of its own, because nothing stored may change; all tasks of the
    class-incremental form share one. Each image has its own nearest keys; in the public code the images of a
    batch vote, which leaks the task. Published settings (google-research/l2p, CIFAR-100): 10 prompts of
    length 10, the 4 nearest, Adam with a constant rate of 0.03 for a batch of 256, 5 epochs, a batch of 16 on
    each device. The head reads the mean of the prompts' outputs, which is taken before the last norm here and
    after it there.

    Attributes:
        prompts: number of prompts.
        length: number of tokens of each prompt.
        top: number of prompts that an image gets.
        head: name of the model's head, whose input is the query.
        learning_rate: learning rate of prompts and keys for a batch of 256; in proportion to the batch.
    """

    name: ClassVar[str] = "l2p"
    schedule = staticmethod(constant)
    inference: ClassVar[bool] = True

    prompts: int = 10
    length: int = 10
    top: int = 4
    head: str = "head"
    learning_rate: float = 0.03

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "config.l2p.", prompts=1, length=1, top=1, learning_rate=0)
        if self.top > self.prompts:
            raise CwpsError(
                f"config.l2p.top = {self.top}: must be at most config.l2p.prompts = {self.prompts}"
            )

    def check(self, network: Network, training: TrainConfig) -> None:
        super().check(network, training)
        if not any(self.head in path.split("/")[:-1] for path in network.layout.head_paths):
            raise CwpsError(
                f"config.l2p.head = {self.head!r}: the model has no such head; give the name in config.head"
            )

    def wrap(self, model: nn.Module) -> nn.Module:
        return Prompted(model, self.top, self.head)

    def added(self, moment: Moment) -> Tree:
        rng = np.random.default_rng(moment.training.seed)
        draw = lambda *shape: np.float32(rng.uniform(0, 0.01, shape))
        width = _width(moment.start["params"], moment.network)
        prompts, keys = draw(self.prompts, self.length, width), draw(self.prompts, width)
        return {"prompts": {"prompts": prompts}, "keys": {"keys": keys}}

    def groups(self, network: Network, training: TrainConfig) -> Mapping[str, Group]:
        group = Group(adam(), self.learning_rate * training.batch_size / 256)
        return {"prompts": group, "keys": group}


def _width(params: Tree, network: Network) -> int:
    """Returns the number of features of a token, the input of the first attention."""
    return flatten(params)[f"{next(iter(network.attentions))}/query/kernel"].shape[0]
