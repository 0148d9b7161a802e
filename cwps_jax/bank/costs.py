"""The time that each way takes, measured once for each power of two of pictures."""

import dataclasses
import time
from collections.abc import Callable, Hashable
from typing import Any

import jax

REPEATS = 3  # measurements, after a first call that compiles; the shortest time counts


@dataclasses.dataclass
class Costs:
    """Measured seconds.

    Attributes:
        seconds: {key of a call: its seconds}; a call whose key is here is not measured again.
    """

    seconds: dict[Hashable, float] = dataclasses.field(default_factory=dict)

    def of(self, what: Hashable, call: Callable[[], Any]) -> float:
        """Returns the seconds of a call, measured the first time that it is asked for.

        Args:
            what: the key under which the seconds are kept.
            call: the call, which returns arrays on the device.
        """
        if what not in self.seconds:
            jax.block_until_ready(call())
            self.seconds[what] = min(_seconds(call) for _ in range(REPEATS))
        return self.seconds[what]


def bucket(count: int) -> int:
    """Returns the power of two to which a number of pictures is padded."""
    return 1 << (count - 1).bit_length()


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began
