"""DualPrompt (Wang et al. 2022, arXiv 2204.04799) for a known task: prefixes of attentions."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import numpy as np

from cwps_jax.core.trees import Tree, unflatten
from cwps_jax.errors import CwpsError
from cwps_jax.methods.method import Group, Moment
from cwps_jax.methods.network import Network
from cwps_jax.methods.optimizers import adam
from cwps_jax.methods.prompts import Prefixed, Prompting
from cwps_jax.methods.schedules import constant
from cwps_jax.settings import TrainConfig
from cwps_jax.settings.checks import at_least


@dataclasses.dataclass(frozen=True)
class DualPrompt(Prompting):
    """Additional keys and values in chosen attentions of a frozen ViT (prefix tuning).

    The task is known here, so it has an E-prompt of its own, and no key is needed to find it. The G-prompt,
    which all tasks of the class-incremental form share, is also the task's own, because nothing stored may
    change. Published settings (google-research/l2p, CIFAR-100): G-prompt of length 5 in blocks 0 and 1,
    E-prompt of length 5 in blocks 2 to 4, Adam with a constant rate of 0.03 for a batch of 256, 5 epochs, a
    batch of 24 on each device.

    Attributes:
        general_blocks: indices of the attentions that get the G-prompt; those that do not exist are left out.
        expert_blocks: indices of the attentions that get the E-prompt; those that do not exist are left out.
        general_length: number of keys and values in each G-prompt.
        expert_length: number of keys and values in each E-prompt.
        learning_rate: learning rate of the prompts for a batch of 256; in proportion to the batch.
    """

    name: ClassVar[str] = "dualprompt"
    schedule = staticmethod(constant)
    inference: ClassVar[bool] = True

    general_blocks: tuple[int, ...] = (0, 1)
    expert_blocks: tuple[int, ...] = (2, 3, 4)
    general_length: int = 5
    expert_length: int = 5
    learning_rate: float = 0.03

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "config.dualprompt.", general_length=1, expert_length=1, learning_rate=0)

    def check(self, network: Network, training: TrainConfig) -> None:
        super().check(network, training)
        if not self._lengths(network):
            raise CwpsError(
                f"config.dualprompt: this backbone has {len(network.attentions)} attentions, none of which "
                f"is in general_blocks = {self.general_blocks} or expert_blocks = {self.expert_blocks}"
            )

    def wrap(self, model: nn.Module) -> nn.Module:
        return Prefixed(model)

    def added(self, moment: Moment) -> Tree:
        rng = np.random.default_rng(moment.training.seed)
        draw = lambda *shape: np.float32(rng.uniform(-1, 1, shape))
        sizes = moment.network.attentions
        return {
            "prefixes": unflatten(
                {
                    f"{path}/{name}": draw(length, *sizes[path])
                    for path, length in self._lengths(moment.network).items()
                    for name in ("key", "value")
                }
            )
        }

    def groups(self, network: Network, training: TrainConfig) -> Mapping[str, Group]:
        return {"prefixes": Group(adam(), self.learning_rate * training.batch_size / 256)}

    def _lengths(self, network: Network) -> dict[str, Any]:
        lengths = {
            **dict.fromkeys(self.general_blocks, self.general_length),
            **dict.fromkeys(self.expert_blocks, self.expert_length),
        }
        numbered = enumerate(network.attentions)
        return {path: lengths[number] for number, path in numbered if number in lengths}
