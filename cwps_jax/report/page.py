"""A white page measured in inches from its upper left corner, on which the pictures are drawn.

It uses matplotlib's objects alone, never pyplot: no display, no global state, safe in any thread.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path

from cwps_jax.report.owners import Colour, darker

DPI = 150
MARGIN = 0.3
INK = "#1a1a1a"
MUTED = "#666666"
RULE = "#dddddd"
SHAPES = "osD^vPX"  # of series; as many as have no divisor in common with the number of colours

_LONGEST_NAME = 24


class Page:
    """One picture.

    Attributes:
        width: in inches.
        height: in inches.
        axes: axes over the whole page; one unit is an inch, y points down.
    """

    def __init__(self, width: float, height: float) -> None:
        # Whole pixels, so that images keep their pixels too.
        self.width, self.height = np.ceil(np.array([width, height]) * DPI) / DPI
        self._figure = Figure((self.width, self.height), dpi=DPI, facecolor="white")
        self._canvas = FigureCanvasAgg(self._figure)
        self._told: dict[str, str] = {}
        self.axes = self._figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, self.width), ylim=(self.height, 0))
        self.axes.axis("off")

    def text(self, x: float, y: float, text: str, size: float = 9, **style: Any) -> None:
        """Writes text, by default from `x` to the right and centred on `y`."""
        defaults = {"ha": "left", "va": "center", "color": INK}
        # A dollar sign in a name is no formula.
        plain = text.replace("$", r"\$")
        # Matplotlib centres the line with its descenders; the eye centres the letters.
        self.axes.text(x, y + 0.0013 * size, plain, fontsize=size, **{**defaults, **style})

    def title(self, title: str, subtitle: str) -> None:
        """Writes the picture's title, and below it how to read the picture."""
        self._told = {"Title": title, "Description": subtitle}
        self.text(MARGIN, 0.36, title, 13, weight="bold")
        self.text(MARGIN, 0.64, subtitle, 9, color=MUTED)

    def image(self, x: float, y: float, pixels: np.ndarray) -> None:
        """Puts (height, width, 3) pixels down with their upper left corner at (x, y)."""
        x, y = round(x * DPI) / DPI, round(y * DPI) / DPI
        right, bottom = x + pixels.shape[1] / DPI, y + pixels.shape[0] / DPI
        self.axes.imshow(
            pixels, extent=(x, right, bottom, y), aspect="auto", interpolation="nearest", resample=False
        )

    def rectangle(self, x: float, y: float, width: float, height: float, fill: Any, edge: Any) -> None:
        """Draws a rectangle with its upper left corner at (x, y)."""
        self.axes.add_patch(Rectangle((x, y), width, height, facecolor=fill, edgecolor=edge, linewidth=0.6))

    def swatch(self, x: float, y: float, colour: Colour, size: float = 0.13) -> None:
        """Draws the small square that stands for an owner, centred on (x, y)."""
        self.rectangle(x - size / 2, y - size / 2, size, size, rgb(colour), rgb(darker(colour)))

    def line(self, points: Sequence[tuple[float, float]], colour: Any) -> None:
        """Draws a thin line through points."""
        self.axes.plot(*zip(*points, strict=True), color=colour, linewidth=0.8, zorder=1)

    def legend(self, x: float, y: float, entries: Sequence[tuple[Colour, str]], flow: "Flow") -> None:
        """Draws swatches with their texts where `flow` puts them, from (x, y) on."""
        for (colour, text), (dx, dy) in zip(entries, flow.places, strict=True):
            self.swatch(x + dx + 0.07, y + dy, colour)
            self.text(x + dx + 0.21, y + dy, text)

    def inset(self, x: float, y: float, width: float, height: float) -> Axes:
        """Returns axes of their own, with their upper left corner at (x, y)."""
        bottom = self.height - y - height
        return self._figure.add_axes(
            (x / self.width, bottom / self.height, width / self.width, height / self.height)
        )

    def save(self, path: pathlib.Path) -> pathlib.Path:
        """Writes a PNG file, with its title inside as text and nothing that changes; returns its path."""
        with path.open("wb") as file:
            self._canvas.print_png(file, metadata={"Software": None, **self._told})
        return path


@dataclasses.dataclass(frozen=True)
class Flow:
    """The places of a legend's entries, which fill one line after the other.

    Attributes:
        places: (x, y) of each entry.
        height: of all lines.
    """

    places: tuple[tuple[float, float], ...]
    height: float

    @classmethod
    def of(cls, texts: Sequence[str], width: float, line: float = 0.23) -> "Flow":
        """Lays entries out on lines of the given width."""
        places: list[tuple[float, float]] = []
        x, y = 0.0, line / 2
        for text in texts:
            needed = 0.21 + text_width(text, 9)
            if x and x + needed > width:
                x, y = 0.0, y + line
            places.append((x, y))
            x += needed + 0.28
        return cls(tuple(places), y + line / 2)


def dressed(axes: Axes) -> Axes:
    """Returns axes with a grid in the background, and without the frame's upper and right side."""
    axes.tick_params(labelsize=9, color=MUTED, labelcolor=INK)
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return axes


def apart(places: np.ndarray, distance: float, low: float, high: float) -> np.ndarray:
    """Returns places for labels that do not overlap, each as near to its own place as possible.

    Args:
        places: (n,) ascending, places of the labelled points.
        distance: least distance of two labels; n of them fit between the limits.
        low, high: the limits.
    """
    steps = distance * np.arange(len(places))
    # What all have moved by, less their steps, rises: so do the largest so far and the smallest to come.
    moved = places - steps
    middle = (np.maximum.accumulate(moved) + np.minimum.accumulate(moved[::-1])[::-1]) / 2
    return np.clip(middle, low + distance / 2, high - distance / 2 - steps[-1]) + steps


def rgb(colour: Colour) -> tuple[float, float, float]:
    """Returns the colour as matplotlib takes it."""
    red, green, blue = colour
    return red / 255, green / 255, blue / 255


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Returns the width of a line of text in inches."""
    font = FontProperties(size=size, weight=weight)
    points = text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]
    # On the page letters are set to whole pixels, which makes the line up to 3% longer.
    return float(points) * 1.03 / 72


def shortened(name: str, longest: int = _LONGEST_NAME) -> str:
    """Returns the name, shortened in its middle if it is too long for a picture."""
    if len(name) <= longest:
        return name
    tail = longest // 2
    return f"{name[: longest - tail - 1]}…{name[-tail:]}"


def percent(share: float) -> str:
    """Returns a share as text: "32.0%", "<0.1%" for a trace of something, "0%" for nothing."""
    if 0 < share < 0.0005:
        return "<0.1%"
    return f"{100 * share:.1f}%" if 0 < share < 0.9995 else f"{100 * share:.0f}%"
