"""Picture of the task relation: its matrix, and beside each row the same shares as one stacked bar."""

import math
from collections.abc import Mapping, Sequence

from matplotlib import colormaps

from cwps_jax.report.owners import Colour, Relations, owner_label, stacked
from cwps_jax.report.page import INK, MARGIN, RULE, Flow, Page, percent, rgb, shortened, text_width
from cwps_jax.store.pool import PRETRAINED

_SLANT = math.radians(40)
_BAR = 4.0  # inches: all channels of a task
_MATRIX_TITLE = "Share of each task (row) stored by each owner (column), %"


def draw_relation(relations: Relations, colours: Mapping[str, Colour]) -> Page:
    """Draws a row for each task: its line of the relation matrix, and its bar.

    Args:
        relations: of the tasks, oldest first.
        colours: of every owner.
    """
    tasks = list(relations)
    owners = list(dict.fromkeys([PRETRAINED, *tasks, *(name for one in relations.values() for name in one)]))
    names = ["pre-trained", *map(shortened, owners[1:])]
    widest = max(text_width(name, 9) for name in names)
    cell = min(0.62, max(0.44, 8.0 / len(owners)))
    header = 0.3 + (widest * math.sin(_SLANT) if widest > cell else 0.1)
    left = MARGIN + widest + 0.12
    slants = (text_width(name, 9) * math.cos(_SLANT) if widest > cell else 0.0 for name in names)
    overhang = max((column + 0.5) * cell + slant for column, slant in enumerate(slants))
    bars = max(left + max(cell * len(owners), overhang), MARGIN + text_width(_MATRIX_TITLE, 10, "bold")) + 0.5
    entries = [(colour, shortened(owner_label(key))) for key, colour in colours.items()]
    flow = Flow.of([text for _, text in entries], _BAR)
    header = max(header, flow.height + 0.1)
    top = 1.25 + header
    page = Page(bars + _BAR + MARGIN, top + cell * len(tasks) + MARGIN)
    page.title(
        "Where the tasks take their channels from",
        "Shares of a task's channels by who stores them, weighted by parameters.",
    )
    page.text(MARGIN, 1.1, _MATRIX_TITLE, 10, weight="bold")
    page.text(bars, 1.1, "The same, as one bar for each task", 10, weight="bold")
    page.legend(bars, 1.22, entries, flow)
    _draw_header(page, left, top, cell, names)
    for row, (task, relation) in enumerate(relations.items()):
        y = top + (row + 0.5) * cell
        page.text(left - 0.12, y, shortened(task), 9, ha="right")
        for column, owner in enumerate(owners):
            _draw_cell(page, left + column * cell, y, cell, relation.get(owner, 0.0))
        _draw_bar(page, bars, y, 0.62 * cell, stacked(relation, task, colours), colours)
    return page


def _draw_header(page: Page, left: float, top: float, cell: float, names: Sequence[str]) -> None:
    slanted = max(text_width(name, 9) for name in names) > cell
    style = {"rotation": 40, "rotation_mode": "anchor"} if slanted else {"ha": "center"}
    for column, name in enumerate(names):
        page.text(left + (column + 0.5) * cell, top - 0.13, name, 9, **style)


def _draw_cell(page: Page, left: float, y: float, cell: float, share: float) -> None:
    fill = colormaps["Blues"](0.85 * share) if share else "white"
    page.rectangle(left, y - cell / 2, cell, cell, fill, RULE)
    if share:
        ink = "white" if share > 0.6 else INK
        text = percent(share).removesuffix("%")
        page.text(left + cell / 2, y, text, min(9, 15 * cell), ha="center", color=ink)


def _draw_bar(
    page: Page,
    left: float,
    y: float,
    height: float,
    shares: Mapping[str, float],
    colours: Mapping[str, Colour],
) -> None:
    for key, share in shares.items():
        page.rectangle(left, y - height / 2, _BAR * share, height, rgb(colours[key]), "white")
        text = percent(share)
        if text_width(text, 8) + 0.08 < _BAR * share:  # the matrix has all numbers
            light = sum(part * weight for part, weight in zip(colours[key], (0.21, 0.72, 0.07), strict=True))
            ink = INK if light > 130 else "white"
            page.text(left + _BAR * share / 2, y, text, 8, ha="center", color=ink)
        left += _BAR * share
