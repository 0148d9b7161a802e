"""To how many channels of each layer tasks' own ones are padded: few numbers, so that programs are shared."""

from collections.abc import Iterable, Mapping

import numpy as np

from cwps_jax.bank.address import Capacity
from cwps_jax.core.channels import Layout
from cwps_jax.core.compact import choose_capacity
from cwps_jax.core.trees import unflatten


class Capacities:
    """The capacities of the bank's programs. A new one is made where the others do not fit, or are too wide.

    Args:
        layout: the backbone's layout.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._known: list[Mapping[str, int]] = []
        self._covering: dict[frozenset[Capacity], Capacity] = {}
        self._fan_in = {layer.path: float(layer.channel_parameters) for layer in layout.layers}

    def of(self, counts: Mapping[str, int]) -> Capacity:
        """Returns the capacity for {path of a kernel: number of a task's own channels}."""
        gates = unflatten({path: np.ones(count) for path, count in counts.items()})
        found = choose_capacity(self._layout, gates, self._known, self._fan_in)
        if found not in self._known:
            self._known.append(found)
        return tuple(found[layer.path] for layer in self._layout.layers)

    def of_all(self, counts: Iterable[Mapping[str, int]]) -> list[Capacity]:
        """Returns the capacities for tasks that come together: one for all, except where it is too wide."""
        some = list(counts)
        if some:
            self.of({path: max(one[path] for one in some) for path in some[0]})
        return [self.of(one) for one in some]

    def covering(self, capacities: Iterable[Capacity]) -> Capacity:
        """Returns the capacity of a batch of tasks with these; () is that of a task that is not loaded."""
        together = frozenset(capacities) - {()}
        if not together:
            return ()
        if together not in self._covering:
            widest = map(max, *together, *together)  # twice: `max` needs two
            paths = (layer.path for layer in self._layout.layers)
            self._covering[together] = self.of(dict(zip(paths, widest, strict=True)))
        return self._covering[together]
