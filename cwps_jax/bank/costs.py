"""What each way takes, measured once for each power of two of pictures."""

import dataclasses
import time
from collections.abc import Callable, Hashable
from typing import Any

import jax

REPEATS = 3  # the least of so many counts, after one that compiles


@dataclasses.dataclass
class Costs:
    """Measured seconds.

    Attributes:
        seconds: {what: seconds}; what is written here is not measured.
    """

    seconds: dict[Hashable, float] = dataclasses.field(default_factory=dict)

    def of(self, what: Hashable, call: Callable[[], Any]) -> float:
        """Returns the seconds of a call, measured the first time that it is asked for.

        Args:
            what: by which it is known again.
            call: gives arrays of the device.
        """
        if what not in self.seconds:
            jax.block_until_ready(call())
            self.seconds[what] = min(_seconds(call) for _ in range(REPEATS))
        return self.seconds[what]


def bucket(count: int) -> int:
    """Returns the power of two of pictures that so many are padded to."""
    return 1 << (count - 1).bit_length()


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began
