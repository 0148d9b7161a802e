"""BitFit (Ben Zaken et al. 2022): only biases and the head are trained."""

import dataclasses
from typing import ClassVar

from cwps_jax.core.channels import Layout
from cwps_jax.methods.parts import Parts


@dataclasses.dataclass(frozen=True)
class BitFit(Parts):
    """Trains and stores every bias, of layers and of norms, the norms' statistics, and the head."""

    name: ClassVar[str] = "bitfit"

    def trained(self, layout: Layout) -> tuple[str, ...]:
        return tuple(path for path in layout.backbone_shapes if path.rpartition("/")[2] == "bias")
