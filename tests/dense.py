"""CWPS whose hard stage trains the whole child and holds closed channels: the compact form's reference."""

import dataclasses
from typing import ClassVar

from cwps_jax import TrainConfig
from cwps_jax.core.budgets import Prices
from cwps_jax.methods import Cwps
from cwps_jax.methods.method import Group, Stage
from cwps_jax.methods.network import Network


@dataclasses.dataclass(frozen=True)
class DenseCwps(Cwps):
    """Hardens channels, and then trains on as it does where single weights are gated: without packing."""

    name: ClassVar[str] = "dense_cwps"

    def hard_stage(self, epochs: int, groups: dict[str, Group], network: Network, cost: Prices) -> Stage:
        by_weight = dataclasses.replace(self, granularity="weight")
        return Cwps.hard_stage(by_weight, epochs, groups, network, cost)


def dense(config: TrainConfig) -> TrainConfig:
    """Returns a config of cwps with its hard stage in the dense form."""
    settings = {field.name: getattr(config.method, field.name) for field in dataclasses.fields(Cwps)}
    return dataclasses.replace(config, method=DenseCwps(**settings))
