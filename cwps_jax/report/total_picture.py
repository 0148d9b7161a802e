"""Picture of all bytes that are stored against the number of tasks, for each of several methods."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cwps_jax.report.costs import short
from cwps_jax.report.owners import on_white, series_colours
from cwps_jax.report.page import (
    INK,
    MARGIN,
    MUTED,
    SHAPES,
    Page,
    apart,
    dressed,
    rgb,
    shortened,
    text_width,
)

_WIDTH, _HEIGHT, _LINE = 5.6, 4.0, 0.21  # inches
COPIES = "a copy of the backbone for each task"


def draw_total(parameters: Sequence[int], totals: Mapping[str, Sequence[float] | np.ndarray]) -> Page:
    """Draws one line for each series, and a dashed one for a whole backbone in float32 for each task.

    Each line ends at its name and its last value.

    Args:
        parameters: of the backbones.
        totals: {name of a series: bytes stored after 0, 1, 2... tasks, the pre-trained model included}.
    """
    most = max(map(len, totals.values()))
    lines = {name: np.array(values, np.float64) for name, values in totals.items()}
    copies = [4 * count * np.arange(1, most + 1) for count in parameters]
    colours = series_colours(lines)
    ends = [*((values[-1], name) for name, values in lines.items()), *((one[-1], COPIES) for one in copies)]
    ends.sort(reverse=True)
    texts = [f"{shortened(name, 72)}  {_bytes(value)}" for value, name in ends]
    left, top, height = MARGIN + 0.75, 0.95, max(_HEIGHT, _LINE * len(ends))
    beside = left + _WIDTH + 0.5
    page = Page(beside + max(text_width(text, 9) for text in texts) + MARGIN, top + height + 0.7)
    page.title(
        "All bytes stored against the number of tasks",
        "The pre-trained backbone in float32 included. Mean over seeds where there are several.",
    )
    axes = dressed(page.inset(left, top, _WIDTH, height))
    highest = 1.05 * ends[0][0]
    axes.set(xlim=(0, most - 1 or 1), ylim=(0, highest))
    for one in copies:
        axes.plot(one, "--", color=MUTED, linewidth=1.2, zorder=2)
    shapes = {name: SHAPES[place % len(SHAPES)] for place, name in enumerate(lines)}
    for name, values in lines.items():
        axes.plot(
            values, f"-{shapes[name]}", color=rgb(on_white(colours[name])), markersize=5, linewidth=1.4,
            clip_on=False, zorder=3,
        )  # fmt: skip
    places = np.array([top + height * (1 - value / highest) for value, _ in ends])
    for (_, name), text, place, y in zip(
        ends, texts, places, apart(places, _LINE, top, top + height), strict=True
    ):
        leader = rgb(on_white(colours[name])) if name in colours else MUTED
        page.line([(left + _WIDTH + 0.08, place), (beside - 0.1, y)], leader)
        page.text(beside, y, text, color=INK if name in colours else MUTED)
    axes.set_xlabel("tasks learned", fontsize=9, color=INK)
    axes.set_ylabel("bytes stored", fontsize=9, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _bytes(value)))
    return page


def _bytes(value: float) -> str:
    return f"{short(value)}B".replace(" ", "\u2009") if value else "0"
