"""Fine-tuning: every channel is the task's own."""

import dataclasses
from typing import Any, ClassVar

from cwps_jax.core.masks import all_gates
from cwps_jax.methods import channels
from cwps_jax.methods.method import Finished, Method, Restoring, Stage, Stored
from cwps_jax.methods.network import Network
from cwps_jax.methods.rounding import check_rounded, learned_rounded
from cwps_jax.methods.whole import finetune_stage
from cwps_jax.settings import TrainConfig


@dataclasses.dataclass(frozen=True)
class Finetune(Method):
    """One stage over all epochs, with the step of cwps's warm-up."""

    name: ClassVar[str] = "finetune"

    def check(self, network: Network, training: TrainConfig) -> None:
        check_rounded(network, training)

    def stages(self, network: Network, training: TrainConfig) -> tuple[Stage, ...]:
        stage = finetune_stage("finetune", training.epochs, training, network)
        return learned_rounded((stage,), training, network)

    def store(self, finished: Finished) -> Stored:
        gates = all_gates(finished.moment.network.layout, True)
        return channels.store_finished(dataclasses.replace(finished, gates=gates))

    def restore(self, view: Restoring) -> dict[str, Any]:
        return channels.restore_channels(view)
