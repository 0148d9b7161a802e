"""The confusion picture: which class was taken for which."""

import pathlib
from collections.abc import Sequence

import numpy as np

from cwps_jax.report.page import INK, MARGIN, Page, shortened, text_width

CELL = 0.42  # inches
TOP = 0.95
_STRONGEST = np.array([0, 114, 178])


def draw_confusion(
    confusion: np.ndarray, class_names: Sequence[str], title: str, path: pathlib.Path
) -> pathlib.Path:
    """Draws a row for each class, and how its images were answered, as shares of the row.

    Args:
        confusion: (classes, classes), how many images of the class of a row were taken for that of a column.
        class_names: of rows and columns.
        title: whose picture it is.
        path: PNG file to write.
    """
    names, count = [shortened(name) for name in class_names], len(class_names)
    cell = min(CELL, 40 / count)
    size = min(9.0, 60 * cell)
    beside = max(text_width(name, size) for name in names) + 0.15
    width = max(2 * MARGIN + beside + count * cell, 5.5)
    page = Page(width, TOP + beside + count * cell + MARGIN)
    page.title(title, "rows: the right class; columns: what was answered")
    x, y = MARGIN + beside, TOP + beside
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    for row, name in enumerate(names):
        middle = (row + 0.5) * cell
        page.text(x - 0.08, y + middle, name, size, ha="right")
        page.text(x + middle, y - 0.08, name, size, rotation=90, ha="center", va="bottom")
        for column in range(count):
            share = shares[row, column]
            fill = (255 + share * (_STRONGEST - 255)) / 255
            page.rectangle(x + column * cell, y + row * cell, cell, cell, tuple(fill), "#dddddd")
            if confusion[row, column] and cell == CELL:
                ink = "white" if share > 0.5 else INK
                page.text(
                    x + (column + 0.5) * cell,
                    y + middle,
                    str(confusion[row, column]),
                    8,
                    ha="center",
                    color=ink,
                )
    return page.save(path)
