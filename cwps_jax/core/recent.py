"""What was used last, as much of it as fits."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import jax


class Recent:
    """Keeps trees of arrays that are costly to make, up to so many bytes; the least recently used go first.

    Threads may share one: they wait for each other's bookkeeping, not for what another makes.

    Args:
        limit: bytes to keep; the newest tree is kept however large it is.

    Attributes:
        bytes: how many are kept now.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Returns the tree of a key, made by `make` where it is not kept; two threads may both make it."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
        tree = make()
        size = sum(getattr(leaf, "nbytes", 0) for leaf in jax.tree.leaves(tree))
        with self._lock:
            if key not in self._kept:
                self._kept[key] = tree, size
                self.bytes += size
            while self.bytes > self.limit and len(self._kept) > 1:
                self.bytes -= self._kept.popitem(last=False)[1][1]
            return self._kept[key][0]
