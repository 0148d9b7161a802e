"""What was used last, as much of it as fits."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import jax


class Recent:
    """Keeps trees of arrays that are costly to make, up to so many bytes; the least recently used go first.

    Args:
        limit: bytes to keep; the newest tree is kept however large it is.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    @property
    def bytes(self) -> int:
        """Bytes that are kept now."""
        return sum(size for _, size in self._kept.values())

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Returns the tree of a key, made by `make` where it is not kept."""
        if key not in self._kept:
            tree = make()
            self._kept[key] = tree, sum(getattr(leaf, "nbytes", 0) for leaf in jax.tree.leaves(tree))
        self._kept.move_to_end(key)
        while self.bytes > self.limit and len(self._kept) > 1:
            self._kept.popitem(last=False)
        return self._kept[key][0]
