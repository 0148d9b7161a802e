"""Linear probe: every channel is the pre-trained model's, the head alone is trained."""

import jax

from cwps_jax.config import TrainConfig
from cwps_jax.core import masks as core_masks
from cwps_jax.core.trees import Tree
from cwps_jax.methods.method import Frozen, Method, Moment, Stage


def probe(config: TrainConfig) -> Method:
    """Returns one stage over all epochs that trains the head on the frozen backbone's features."""
    stage = Stage("probe", config.epochs, _frozen_backbone, _all_closed, trains_backbone=False)
    return Method("probe", (stage,))


def _all_closed(moment: Moment) -> tuple[Tree, Frozen]:
    return {}, Frozen(gates=core_masks.all_gates(moment.layout, False))


def _frozen_backbone(
    child: Tree, masks: Tree, frozen: Frozen, temperature: jax.Array
) -> tuple[Tree, Tree | None]:
    # The child starts as the pre-trained model, and its channels stay closed: it is its own parent.
    return child, frozen.gates
