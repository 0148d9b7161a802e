"""Norms and head: scales, shifts and statistics of every norm are the task's own."""

import dataclasses
from typing import ClassVar

from cwps_jax.core.channels import Layout
from cwps_jax.methods.parts import Parts, norm_leaves


@dataclasses.dataclass(frozen=True)
class NormOnly(Parts):
    """Trains and stores 2 numbers per channel of each norm, its statistics, and the head."""

    name: ClassVar[str] = "norm_only"

    def trained(self, layout: Layout) -> tuple[str, ...]:
        return norm_leaves(layout)
