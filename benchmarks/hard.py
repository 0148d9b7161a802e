"""The hard stage's two forms against a plain fine-tuning step: time, FLOPs, memory and optimizer state.

    python benchmarks/hard.py --out benchmarks/results/hard_cpu.json

"hard" is the package's, whose parameters are the open channels alone; "dense_hard" trains the whole child and
holds the closed channels: the reference, which is here alone. 30% of every layer's channels are open. Turns,
FLOPs and memory are as in step.py; optimizer bytes are those of the layers' channels, without norms and head.
"""

import dataclasses
import functools

from step import BASELINE, KINDS, Make, run
from turn import Turn

from cwps_jax.core.budgets import Prices
from cwps_jax.methods import Cwps
from cwps_jax.methods.method import Group, Stage
from cwps_jax.methods.network import Network


@dataclasses.dataclass(frozen=True)
class DenseCwps(Cwps):
    """Hardens channels, and then trains on as it does where single weights are gated: without packing."""

    def hard_stage(self, epochs: int, groups: dict[str, Group], network: Network, cost: Prices) -> Stage:
        by_weight = dataclasses.replace(self, granularity="weight")
        return Cwps.hard_stage(by_weight, epochs, groups, network, cost)


FORMS: dict[str, Make] = {
    BASELINE: KINDS[BASELINE],
    "hard": functools.partial(Turn, "hard"),
    "dense_hard": functools.partial(Turn, "hard", method=DenseCwps()),
}

if __name__ == "__main__":
    run("hard", FORMS, __doc__, {"size": 224, "batch": 16, "cost_batch": 32})
