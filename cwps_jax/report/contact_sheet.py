"""A contact sheet: pictures as the model saw them, with its predictions."""

import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from cwps_jax.data.split import Split
from cwps_jax.errors import CwpsError
from cwps_jax.report.page import DPI, MARGIN, MUTED, Page, shortened

MOST = 2000
COLUMNS = 6
SIDE, CELL = 1.0, (1.45, 1.55)  # inches


def draw_contact_sheet(
    split: Split, names: Sequence[str], answers: Sequence[str], path: pathlib.Path
) -> pathlib.Path:
    """Draws every image as the model saw it, with its prediction and its name below it.

    Args:
        split: the images, uint8.
        names: of the images.
        answers: the text about each image.
        path: PNG file to write.

    Raises:
        CwpsError: more images than one picture can hold.
    """
    if len(split) > MOST:
        raise CwpsError(f"{len(split):,} images are too many for one contact sheet; give at most {MOST:,}")
    columns = min(COLUMNS, len(split))
    page = Page(2 * MARGIN + columns * CELL[0], 2 * MARGIN + -(-len(split) // columns) * CELL[1])
    side = round(SIDE * DPI)
    for place, (name, answer) in enumerate(zip(names, answers, strict=True)):
        pixels = split.read(np.array([place]), None)["image"][0]
        x, y = MARGIN + place % columns * CELL[0], MARGIN + place // columns * CELL[1]
        page.image(x, y, np.asarray(Image.fromarray(pixels).resize((side, side))))
        page.text(x, y + SIDE + 0.15, shortened(answer, 22), 8, weight="bold")
        page.text(x, y + SIDE + 0.32, shortened(name, 24), 7, color=MUTED)
    return page.save(path)
