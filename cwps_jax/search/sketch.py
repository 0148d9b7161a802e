"""Sketches: stored rows in 8 bits, which the search looks at before it reads the rows themselves.

A sketch is written once, with the rows, and mapped into memory. It has bounds of its error, so only the rows
that it does not decide are compared weight by weight. It is a flat dict of arrays over all rows of all
layers, in the layout's order:

    rows      int32 (layers,)   number of rows of each layer
    size      int32 (layers,)   number of weights of a row
    channel   int32 (rows,)     whose change it is: the row's channel in its layer
    values    int8 (weights,)   the changes since pre-training over their scales, bias last
    scale     float32 (rows,)   what a row's values are to be multiplied by
    error     float32 (rows,)   the norm of the rounding error
    squared   float32 (rows,)   squared norm of the change
    turned    float32 (rows,)   squared norm of the change of direction
    norm      float64 (rows,)   norm of the row itself
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cwps_jax.core.channels import Layout
from cwps_jax.search.models import Rows, joined

VANISHING = 1e-35  # a row that is smaller everywhere is zero in 8 bits: no float32 is left for its scale


def sketched(
    layout: Layout, rows: Rows, channels: Mapping[str, np.ndarray], start: Rows
) -> dict[str, np.ndarray]:
    """Returns the sketch of a version's rows.

    Args:
        layout: the backbone's layout.
        rows: {path of a leaf: (rows, fan-in)}.
        channels: {path of a kernel: int (rows,)}, the channels of the rows.
        start: the pre-trained model's rows.
    """
    parts: list[dict[str, Any]] = []
    for layer in layout.layers:
        channel = channels[layer.path]
        own, before = joined(layer, rows), joined(layer, start, channel)
        change, turn = own - before, direction(own) - direction(before)
        squared, turned = (np.einsum("rs,rs->r", each, each) for each in (change, turn))
        values, scale, error = rounded(change)
        norm = np.sqrt(np.einsum("rs,rs->r", own, own, dtype=np.float64))
        count, size = np.array([[len(channel)], [own.shape[1]]], np.int32)
        parts.append(
            dict(rows=count, size=size, channel=channel.astype(np.int32), values=values.ravel(), scale=scale)
            | dict(error=error, squared=squared, turned=turned, norm=norm)
        )
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]} if parts else {}


def rounded(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns rows over their scales in int8, their scales, and the norms of the rounding errors.

    The rows, float32 (rows, size), are overwritten.
    """
    most = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    scale = np.where(most > VANISHING, most, 1) / np.float32(127)
    rows /= scale[:, None]
    whole = np.rint(rows)
    rows -= whole
    return whole.astype(np.int8), scale, scale * np.sqrt(np.einsum("rs,rs->r", rows, rows))


def direction(rows: np.ndarray) -> np.ndarray:
    """Returns rows of length 1; zero rows stay zero."""
    norm = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(norm > 0, norm, 1)
