"""Norm statistics of the trained network, of `nn.BatchNorm` and of other modules, with any momentum."""

from collections.abc import Callable, Collection
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging

from cwps_jax.core.trees import Tree, flatten, unflatten


def estimated(after: Callable[[Tree], Tree], now: Tree, batch_norms: Collection[str]) -> dict[str, Any]:
    """Returns the model's "batch_stats" estimated again, as the mean of the statistics of single batches.

    `nn.BatchNorm` gives them directly. Another module is assumed to compute `momentum * statistic + (1 -
    momentum) * batch's` with an unknown momentum: if a statistic is larger by some number before a step, it
    is larger by the momentum times this number after it. Statistics that change in any other way stay as
    training left them, and the log says so; counters and constants stay, too.

    Args:
        after: a function from statistics to those after one more step, averaged over batches, on the host.
        now: the statistics as training left them, on the host.
        batch_norms: paths of the modules that are `nn.BatchNorm`.
    """
    begun = flatten(now)
    foreign = [path for path in begun if path.rpartition("/")[0] not in batch_norms]
    # From zeros: statistics of before have no weight, but 0 times what is not a number is none.
    begun = {path: leaf if path in foreign else np.zeros_like(leaf) for path, leaf in begun.items()}
    found = flatten(after(unflatten(begun)))
    moved = {
        path
        for path in foreign
        if jnp.issubdtype(begun[path].dtype, jnp.floating)
        and not np.allclose(found[path], begun[path], rtol=1e-6, atol=0)
    }
    if moved:
        larger = {path: leaf + _shift(leaf) if path in moved else leaf for path, leaf in begun.items()}
        apart = flatten(after(unflatten(larger)))
    for path in foreign:
        settled = _settled(begun[path], found[path], apart[path]) if path in moved else None
        if path in moved and settled is None:
            logging.warning(
                "batch_stats/%s: not estimated again, since its module does not average it over batches; it "
                "stays as training left it",
                path,
            )
        found[path] = begun[path] if settled is None else settled
    return unflatten(found)


def _settled(start: np.ndarray, after: np.ndarray, after_larger: np.ndarray) -> np.ndarray | None:
    """Returns the limit of a statistic, or None if it does not move by one momentum below 1."""
    begun, moved = np.asarray(start, np.float64), np.asarray(after, np.float64)
    apart = (np.asarray(after_larger, np.float64) - moved) / _shift(start)
    momentum = float(np.median(apart))
    slack = 1e-3 * abs(1 - momentum) + 1e-6 * np.abs(moved).max() / _shift(start)
    if not (-1e-6 <= momentum < 1 - 1e-6 and np.abs(apart - momentum).max() <= slack):
        return None
    return (begun + (moved - begun) / (1 - momentum)).astype(start.dtype)


def _shift(leaf: np.ndarray) -> Any:
    """Returns a number as large as the statistics, so that rounding loses little of it."""
    return leaf.dtype.type(max(1.0, float(np.abs(leaf).max())))
