"""Linear probe: only the head is trained, on the frozen backbone's features."""

import dataclasses
from typing import ClassVar

from cwps_jax.methods.parts import Parts


@dataclasses.dataclass(frozen=True)
class Probe(Parts):
    """One stage over all epochs, with the pre-trained model's norms; a task stores only its head."""

    name: ClassVar[str] = "probe"
    inference: ClassVar[bool] = True
