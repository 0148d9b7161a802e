"""Pictures of who stores each output channel: one of a single task in full, one of all tasks."""

from collections.abc import Mapping, Sequence

import numpy as np

from cwps_jax.core.channels import Layer
from cwps_jax.report.owners import Colour, channel_owners, layer_colours, layers_in_order, strip
from cwps_jax.report.page import DPI, MARGIN, MUTED, Flow, Page, percent, shortened, text_width
from cwps_jax.store.pool import PRETRAINED, Pool

_TALLEST = 120.0  # inches: an image of more than 2**16 pixels cannot be drawn


def draw_task(pool: Pool, task: str, colours: Mapping[str, Colour]) -> Page:
    """Draws one task: a row a layer, a cell a channel, in the colour of the channel's owner.

    Args:
        pool: the stored models.
        task: the task's name.
        colours: of every owner.
    """
    owners = channel_owners(pool, task)
    layers = layers_in_order(pool.layout)
    pitch, size = _rows(len(layers), widest=0.3, narrowest=0.18, largest_font=9)
    labels = [_label(layer) for layer in layers]
    left = MARGIN + max(text_width(label, size) for label in labels) + 0.12
    pixels = round(7.6 * DPI)
    right = left + pixels / DPI
    width = right + 1.45 + MARGIN
    entries = _entries(pool.relation(task), task, colours)
    flow = Flow.of([text for _, text in entries], width - 2 * MARGIN)
    top = 0.85 + flow.height + 0.35
    page = Page(width, top + pitch * len(layers) + MARGIN)
    page.title(
        f"Who stores each output channel of task '{shortened(task)}'",
        "A row is a layer, a cell is one of its output channels. Shares are weighted by parameters."
        + _blend_note(layers, pixels),
    )
    page.legend(MARGIN, 0.85, entries, flow)
    for column, header in ((0.68, "channels"), (1.4, "private")):
        page.text(right + column, top - 0.14, header, size, ha="right", color=MUTED)
    page.image(left, top, _panel([owners[layer.path] for layer in layers], colours, pixels, pitch))
    for row, (layer, label) in enumerate(zip(layers, labels, strict=True)):
        y = top + (row + 0.5) * pitch
        private = float(np.mean(owners[layer.path] == task))
        page.text(left - 0.1, y, label, size, ha="right")
        page.text(right + 0.68, y, str(layer.channels), size, ha="right", color=MUTED)
        page.text(right + 1.4, y, percent(private), size, ha="right")
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
    pitch, size = _rows(len(layers) * lines, widest=0.2, narrowest=0.12, largest_font=8)
    labels = [_label(layer) for layer in layers]
    label_width = max(text_width(label, size) for label in labels) + 0.12
    pixels = round(2.5 * DPI)
    step_x, step_y = pixels / DPI + 0.2, pitch * len(layers) + 0.6
    width = MARGIN + label_width + columns * step_x - 0.2 + MARGIN
    subtitle = (
        "A panel is a task, a row a layer, a cell a channel; beside the name, the share it stores itself."
        + _blend_note(layers, pixels)
    )
    width = max(width, text_width(subtitle, 9) + 2 * MARGIN)
    entries = [(colours[name], _owner(name)) for name in (PRETRAINED, *tasks)]
    flow = Flow.of([text for _, text in entries], width - 2 * MARGIN)
    top = 0.85 + flow.height + 0.1
    page = Page(width, top + lines * step_y + MARGIN - 0.1)
    page.title("Who stores each output channel of every task", subtitle)
    page.legend(MARGIN, 0.85, entries, flow)
    for place, task in enumerate(tasks):
        line, column = divmod(place, columns)
        x, y = MARGIN + label_width + column * step_x, top + line * step_y + 0.4
        owners = channel_owners(pool, task)
        private = percent(pool.relation(task).get(task, 0.0))
        page.swatch(x + 0.07, y - 0.17, colours[task])
        page.text(x + 0.2, y - 0.17, shortened(task, 20), 9, weight="bold")
        page.text(x + pixels / DPI, y - 0.17, private, 9, ha="right", color=MUTED)
        page.image(x, y, _panel([owners[layer.path] for layer in layers], colours, pixels, pitch))
        if not column:
            for row, label in enumerate(labels):
                page.text(x - 0.08, y + (row + 0.5) * pitch, label, size, ha="right")
    return page


def _panel(
    rows: Sequence[np.ndarray], colours: Mapping[str, Colour], pixels: int, pitch: float
) -> np.ndarray:
    """Returns the rows of all layers as one image, white between them."""
    edges = np.rint(np.arange(len(rows) + 1) * pitch * DPI).astype(int)
    gap = max(1, round(0.14 * pitch * DPI))
    image = np.full((edges[-1], pixels, 3), 255, np.uint8)
    for start, stop, owners in zip(edges[:-1], edges[1:], rows, strict=True):
        image[start + gap // 2 : stop - (gap - gap // 2)] = strip(layer_colours(owners, colours), pixels)
    return image


def _rows(count: int, widest: float, narrowest: float, largest_font: float) -> tuple[float, float]:
    """Returns the distance of two rows in inches and the size of their labels in points."""
    pitch = min(max(narrowest, min(widest, 7.0 / count)), _TALLEST / count)
    return pitch, min(largest_font, 0.62 * pitch * 72)


def _entries(
    relation: Mapping[str, float], task: str, colours: Mapping[str, Colour]
) -> list[tuple[Colour, str]]:
    """Returns the legend: the pre-trained model, the task itself, then other owners, largest first."""
    others = sorted(set(relation) - {PRETRAINED, task}, key=lambda name: (-relation[name], name))
    found = []
    for name in (PRETRAINED, task, *others):
        role = " (this task)" if name == task else ""
        found.append((colours[name], f"{_owner(name)}{role}  {percent(relation.get(name, 0.0))}"))
    return found


def _owner(name: str) -> str:
    return "pre-trained model" if name == PRETRAINED else shortened(name)


def _blend_note(layers: Sequence[Layer], pixels: int) -> str:
    too_many = max(layer.channels for layer in layers) > pixels
    return " Cells narrower than a pixel blend." if too_many else ""


def _label(layer: Layer) -> str:
    return shortened(layer.path.removesuffix("/kernel"), 44)
