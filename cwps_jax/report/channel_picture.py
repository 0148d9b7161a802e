"""Pictures of who stores the output channels: one of a single task in full, one of all tasks.

Areas are in proportion: a row is as high as its layer's share of the parameters, and as wide as all others,
so the area of a colour is the share of parameters that its owner stores.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from cwps_jax.core.channels import Layer
from cwps_jax.report.owners import (
    OWN,
    Colour,
    channel_owners,
    layers_in_order,
    owner_label,
    stacked,
    strip,
)
from cwps_jax.report.page import DPI, MARGIN, MUTED, RULE, Flow, Page, apart, percent, shortened, text_width
from cwps_jax.store.pool import Pool

_TALLEST = 120.0  # inches: an image of more than 2**16 pixels cannot be drawn
_LEADER = 0.3  # inches from a label to its row
_HOW = "A row is a layer, as high as its share of the parameters; its channels are sorted by who stores them."


def draw_task(pool: Pool, task: str, colours: Mapping[str, Colour]) -> Page:
    """Draws one task: a row for each layer, its channels sorted and coloured by their owners.

    Args:
        pool: the stored models.
        task: the task's name.
        colours: of every owner.
    """
    owners = channel_owners(pool, task)
    layers = layers_in_order(pool.layout)
    shares, edges = _edges(layers, least=0.2, lowest=4.2)
    pitch = min(0.2, edges[-1] / len(layers))
    size = min(9.0, 0.62 * pitch * 72)
    left = MARGIN + max(text_width(_label(layer), size) for layer in layers) + _LEADER
    pixels = round(6.4 * DPI)
    right = left + pixels / DPI
    width = right + _LEADER + 2.0 + MARGIN
    stack = stacked(pool.relation(task), task, colours)
    entries = [
        (colours[key], f"{shortened(owner_label(key))}  {percent(share)}")
        for key, share in stack.items()
        if share
    ]
    flow = Flow.of([text for _, text in entries], width - 2 * MARGIN)
    top = 0.85 + flow.height + 0.35
    page = Page(width, top + edges[-1] + MARGIN)
    page.title(f"Who stores the output channels of task '{shortened(task)}'", _HOW)
    page.legend(MARGIN, 0.85, entries, flow)
    columns = (right + _LEADER + 0.8, right + _LEADER + 2.0)
    for x, header in zip(columns, ("parameters", "of them its own"), strict=True):
        page.text(x, top - 0.16, header, size, ha="right", color=MUTED)
    page.image(left, top, _panel([owners[layer.path] for layer in layers], task, colours, pixels, edges))
    for layer, share, middle, y in _placed(layers, shares, edges, top, pitch):
        page.line([(left - _LEADER + 0.08, y), (left - 0.04, middle)], RULE)
        page.line([(right + 0.04, middle), (right + _LEADER - 0.08, y)], RULE)
        page.text(left - _LEADER, y, _label(layer), size, ha="right")
        page.text(columns[0], y, percent(share), size, ha="right", color=MUTED)
        page.text(columns[1], y, percent(float(np.mean(owners[layer.path] == task))), size, ha="right")
    return page


def draw_overview(pool: Pool, tasks: Sequence[str], colours: Mapping[str, Colour]) -> Page:
    """Draws tasks beside each other, a small panel each, with the same rows.

    Args:
        pool: the stored models.
        tasks: those that have owners of channels.
        colours: of every owner.
    """
    layers = layers_in_order(pool.layout)
    lines = -(-len(tasks) // 5)
    columns = -(-len(tasks) // lines)
    shares, edges = _edges(layers, least=0.12, lowest=1.9, panels=lines)
    pitch = min(0.16, edges[-1] / len(layers))
    size = min(8.0, 0.62 * pitch * 72)
    label_width = max(text_width(_label(layer), size) for layer in layers) + _LEADER
    pixels = round(2.5 * DPI)
    step_x, step_y = pixels / DPI + 0.2, edges[-1] + 0.6
    width = MARGIN + label_width + columns * step_x - 0.2 + MARGIN
    subtitle = f"{_HOW} Beside a task's name: what it stores itself."
    width = max(width, text_width(subtitle, 9) + 2 * MARGIN)
    entries = [(colours[key], shortened(owner_label(key))) for key in colours]
    flow = Flow.of([text for _, text in entries], width - 2 * MARGIN)
    top = 0.85 + flow.height + 0.1
    page = Page(width, top + lines * step_y + MARGIN - 0.1)
    page.title("Who stores the output channels of every task", subtitle)
    page.legend(MARGIN, 0.85, entries, flow)
    for place, task in enumerate(tasks):
        line, column = divmod(place, columns)
        x, y = MARGIN + label_width + column * step_x, top + line * step_y + 0.4
        owners = channel_owners(pool, task)
        own = percent(stacked(pool.relation(task), task, colours)[OWN])
        page.text(x, y - 0.17, shortened(task, 20), 9, weight="bold")
        page.text(x + pixels / DPI, y - 0.17, own, 9, ha="right", color=MUTED)
        page.image(x, y, _panel([owners[layer.path] for layer in layers], task, colours, pixels, edges))
        if not column:
            for layer, _, middle, at in _placed(layers, shares, edges, y, pitch):
                page.line([(x - _LEADER + 0.08, at), (x - 0.04, middle)], RULE)
                page.text(x - _LEADER, at, _label(layer), size, ha="right")
    return page


def _edges(
    layers: Sequence[Layer], least: float, lowest: float, panels: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Returns each layer's share of the parameters, and the beginning and end of its row, in inches.

    Args:
        layers: in order.
        least: inches that each layer's label needs.
        lowest: height of a panel of few layers.
        panels: how many stand below each other.
    """
    counts = np.array([sum(int(np.prod(shape)) for shape in layer.shapes) for layer in layers], np.float64)
    height = min(max(lowest, least * len(layers)), _TALLEST / panels)
    # A row has at least a pixel: that much of a tiny layer's share is too much.
    rows = np.maximum(1, np.rint(counts / counts.sum() * height * DPI))
    return counts / counts.sum(), np.concatenate([[0.0], np.cumsum(rows)]) / DPI


def _placed(
    layers: Sequence[Layer], shares: np.ndarray, edges: np.ndarray, top: float, pitch: float
) -> Iterator[tuple[Layer, float, float, float]]:
    """Yields each layer with its share, the middle of its row, and where its label stands."""
    middles = top + (edges[:-1] + edges[1:]) / 2
    beside = apart(middles, pitch, top, top + edges[-1])
    return zip(layers, shares.tolist(), middles.tolist(), beside.tolist(), strict=True)


def _panel(
    rows: Sequence[np.ndarray], task: str, colours: Mapping[str, Colour], pixels: int, edges: np.ndarray
) -> np.ndarray:
    """Returns the rows of all layers as one image, a white line between those that are high enough."""
    at = np.rint(edges * DPI).astype(int)
    image = np.full((at[-1], pixels, 3), 255, np.uint8)
    for start, stop, owners in zip(at[:-1], at[1:], rows, strict=True):
        image[start : stop - (stop - start > 3)] = strip(owners, task, colours, pixels)
    return image


def _label(layer: Layer) -> str:
    return shortened(layer.path.removesuffix("/kernel"), 44)
