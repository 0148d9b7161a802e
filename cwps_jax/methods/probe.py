"""Linear probe: the head alone is trained, on the frozen backbone's features."""

import dataclasses
from typing import ClassVar

from cwps_jax.methods.parts import Parts


@dataclasses.dataclass(frozen=True)
class Probe(Parts):
    """One stage over all epochs, with norms as the pre-trained model's; a task stores its head alone."""

    name: ClassVar[str] = "probe"
    inference: ClassVar[bool] = True
