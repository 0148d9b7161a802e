"""Linear probe: every channel is the pre-trained model's, the head alone is trained."""

from cwps_jax.config import TrainConfig
from cwps_jax.core import masks
from cwps_jax.core.trees import Tree
from cwps_jax.methods.method import Frozen, Method, Moment, Stage, whole_child


def probe(config: TrainConfig) -> Method:
    """Returns one stage over all epochs that trains the head on the frozen backbone's features."""

    def begin(moment: Moment) -> tuple[Tree, Frozen]:
        return {}, Frozen(gates=masks.all_gates(moment.layout, False))

    stage = Stage("probe", config.epochs, whole_child, begin, trains_backbone=False)
    return Method("probe", (stage,))
