"""The time that each way takes, measured once for each power of two of pictures."""

import dataclasses
import time
from collections.abc import Callable, Hashable
from typing import Any

import jax

REPEATS = 3  # measurements, after a first call that compiles; the shortest time counts
LET_OTHERS = 0.001  # seconds before each measurement, in which a request that waits can take the lock


@dataclasses.dataclass
class Costs:
    """Measured seconds.

    Attributes:
        holding: runs a function while it holds the bank's lock, and returns what it returns.
        seconds: {key of a call: its seconds}; a call whose key is here is not measured again.
    """

    holding: Callable[[Callable[[], Any]], Any]
    seconds: dict[Hashable, float] = dataclasses.field(default_factory=dict)

    def of(self, what: Hashable, call: Callable[[], Any]) -> float:
        """Returns the seconds of a call, measured the first time that it is asked for.

        Other requests are answered between the measurements.

        Args:
            what: the key under which the seconds are kept.
            call: the call, which returns arrays on the device.
        """
        if what not in self.seconds:
            self._measured(call)
            self.seconds[what] = min(self._measured(call) for _ in range(REPEATS))
        return self.seconds[what]

    def _measured(self, call: Callable[[], Any]) -> float:
        time.sleep(LET_OTHERS)
        seconds: float = self.holding(lambda: _seconds(call))
        return seconds


def bucket(count: int) -> int:
    """Returns the power of two to which a number of pictures is padded."""
    return 1 << (count - 1).bit_length()


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began
