"""Picture of the task relation graph: as a matrix, and as a drawing of who borrows from whom."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps

from cwps_jax.report.owners import Colour, darker, on_white
from cwps_jax.report.page import INK, MARGIN, MUTED, RULE, Page, percent, rgb, shortened, text_width
from cwps_jax.store.pool import Pool

_DISC = 0.42  # inches: radius of a node that stores all of its channels itself
_SLANT = math.radians(40)
_LABELLED = 0.01

_MATRIX_TITLE = "Share of each task (row) stored by each owner (column), %"
_GRAPH_TITLE = "From owner to borrower"
_GRAPH_NOTE = "width: share borrowed; area of a circle: share stored itself"


def draw_relation(pool: Pool, colours: Mapping[str, Colour]) -> Page:
    """Draws the relation matrix on the left and the graph on the right.

    Args:
        pool: the stored models.
        colours: of every owner.
    """
    tasks, owners, shares = pool.relation_matrix()
    names = ["pre-trained", *(shortened(task) for task in tasks)]
    widest = max(text_width(name, 9) for name in names)
    cell = min(0.62, max(0.44, 8.0 / len(owners)))
    header = 0.3 + (widest * math.sin(_SLANT) if widest > cell else 0.1)
    matrix_left = MARGIN + widest + 0.35
    slants = (text_width(name, 9) * math.cos(_SLANT) if widest > cell else 0.0 for name in names)
    overhang = max((column + 0.5) * cell + slant for column, slant in enumerate(slants))
    matrix_width = matrix_left + max(cell * len(owners), overhang) - MARGIN
    matrix_width = max(matrix_width, text_width(_MATRIX_TITLE, 10, "bold"))
    matrix_height = header + cell * len(tasks)

    radius = max(2.1, 1.1 * len(tasks) / (2 * math.pi))
    angles = _angles(len(tasks))
    reach = [_reach(angle, radius, name) for angle, name in zip(angles, names[1:], strict=True)]
    to_left, to_right = (max(_DISC, *side) for side in zip(*reach, strict=True))
    up, down = _height(len(tasks), radius)
    graph_left = MARGIN + matrix_width + 0.5
    top, height = 1.35, max(matrix_height, up + down)
    legend_width = text_width(_GRAPH_TITLE, 10, "bold") + 0.12 + text_width(_GRAPH_NOTE, 9)
    graph_width = max(to_left + to_right, legend_width)
    page = Page(graph_left + graph_width + MARGIN, top + height + MARGIN)
    page.title(
        "Where the tasks take their channels from",
        "Shares of a task's channels by who stores them, weighted by parameters.",
    )
    page.text(MARGIN, 1.1, _MATRIX_TITLE, 10, weight="bold")
    page.text(graph_left, 1.1, _GRAPH_TITLE, 10, weight="bold")
    page.text(graph_left + legend_width, 1.1, _GRAPH_NOTE, 9, ha="right", color=MUTED)
    _draw_matrix(page, matrix_left, top + header, cell, shares, names, [colours[name] for name in owners])
    centre = (graph_left + (graph_width + to_left - to_right) / 2, top + up)
    _draw_graph(page, centre, radius, shares, names, [colours[name] for name in owners])
    return page


def _draw_matrix(
    page: Page,
    left: float,
    top: float,
    cell: float,
    shares: np.ndarray,
    names: Sequence[str],
    colours: Sequence[Colour],
) -> None:
    slanted = max(text_width(name, 9) for name in names) > cell
    style = {"rotation": 40, "rotation_mode": "anchor"} if slanted else {"ha": "center"}
    for column, (name, colour) in enumerate(zip(names, colours, strict=True)):
        x = left + (column + 0.5) * cell
        page.swatch(x, top - 0.13, colour)
        page.text(x, top - 0.27, name, 9, **style)
    for row, line in enumerate(shares):
        y = top + (row + 0.5) * cell
        page.text(left - 0.28, y, names[row + 1], 9, ha="right")
        page.swatch(left - 0.13, y, colours[row + 1])
        for column, share in enumerate(line):
            fill = colormaps["Blues"](0.85 * share) if share else "white"
            page.rectangle(left + column * cell, top + row * cell, cell, cell, fill, RULE)
            if share:
                ink = "white" if share > 0.6 else INK
                text = percent(share).removesuffix("%")
                page.text(left + (column + 0.5) * cell, y, text, min(9, 15 * cell), ha="center", color=ink)


def _draw_graph(
    page: Page,
    centre: tuple[float, float],
    radius: float,
    shares: np.ndarray,
    names: Sequence[str],
    colours: Sequence[Colour],
) -> None:
    middle, tasks = np.array(centre), len(names) - 1
    angles = _angles(tasks)
    places = [middle, *(middle + radius * _direction(angle) for angle in angles)]
    kept = [1.0, *(float(shares[row, row + 1]) for row in range(tasks))]
    discs = [max(0.05, _DISC * math.sqrt(share)) for share in kept]
    taken = [(*(place - disc), *(place + disc)) for place, disc in zip(places, discs, strict=True)]
    edges = [
        (float(share), owner, row + 1)
        for row, line in enumerate(shares)
        for owner, share in enumerate(line)
        if share and owner != row + 1
    ]
    labels = []
    for share, owner, borrower in sorted(edges, reverse=True):
        bend = middle + _bend(angles, owner - 1, borrower - 1, radius) if owner else None
        curve = _curve(places[owner], bend, places[borrower], discs[owner], discs[borrower])
        page.polygon(_arrow(curve, share), colours[owner])
        if share >= _LABELLED:
            ink = rgb(darker(on_white(colours[owner]))) if owner else INK
            labels.append((percent(share), curve, ink))
    for place, disc, colour in zip(places, discs, colours, strict=True):
        page.disc(float(place[0]), float(place[1]), disc, colour)
    page.text(centre[0], centre[1], "pre-\ntrained", 8, ha="center", linespacing=0.95)
    for place, disc, angle, name, share in zip(
        places[1:], discs[1:], angles, names[1:], kept[1:], strict=True
    ):
        taken.append(_label_node(page, place, disc + 0.08, angle, name, f"stores {percent(share)}"))
    box = {"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none"}
    for text, curve, ink in labels:
        free = _free_place(curve, text_width(text, 8), taken)
        # Among many tasks not every label finds a place; the matrix has all numbers.
        if free is not None:
            page.text(float(free[0]), float(free[1]), text, 8, ha="center", zorder=4, color=ink, bbox=box)


def _angles(tasks: int) -> list[float]:
    # Two tasks stand left and right of the pre-trained model, more start at the top, clockwise.
    first = math.pi if tasks <= 2 else -math.pi / 2
    return [first + 2 * math.pi * place / tasks for place in range(tasks)]


def _reach(angle: float, radius: float, name: str) -> tuple[float, float]:
    """Returns how far a node and its label reach to the left and to the right of the middle."""
    across = (radius + _DISC + 0.1) * math.cos(angle)
    width = max(text_width(name, 9, "bold"), text_width("stores 100.0%", 8))
    if abs(math.cos(angle)) < 0.1:
        return width / 2 - across, width / 2 + across
    return (width - across, across) if across < 0 else (-across, width + across)


def _height(tasks: int, radius: float) -> tuple[float, float]:
    """Returns how far the graph reaches above and below the middle."""
    if tasks <= 2:
        return (0.6 * radius if tasks == 2 else _DISC) + 0.1, _DISC + 0.1
    lowest = max(math.sin(angle) for angle in _angles(tasks))
    return radius + _DISC + 0.35, max(radius * lowest + _DISC + 0.35, 0.85 * radius)


Box = tuple[float, float, float, float]


def _label_node(page: Page, place: np.ndarray, away: float, angle: float, name: str, note: str) -> Box:
    """Writes a node's name and what it stores on its outer side; returns the box that is taken."""
    width = max(text_width(name, 9, "bold"), text_width(note, 8))
    across, down = _direction(angle)
    side = 0 if abs(across) < 0.1 else math.copysign(1, across)
    x = float(place[0] + away * across)
    # Above or below the circle the two lines have to clear the disc, beside it they are centred on it.
    y = float(place[1] + away * down + 0.17 * down)
    align = {0: "center", 1: "left", -1: "right"}[int(side)]
    page.text(x, y - 0.075, name, 9, ha=align, weight="bold")
    page.text(x, y + 0.085, note, 8, ha=align, color=MUTED)
    left = x + (side - 1) * width / 2
    return left, y - 0.16, left + width, y + 0.16


def _direction(angle: float) -> np.ndarray:
    return np.array([math.cos(angle), math.sin(angle)])


def _bend(angles: Sequence[float], owner: int, borrower: int, radius: float) -> np.ndarray:
    """Returns the point, from the centre, through which a curve between two tasks runs half-way.

    It keeps clear of the pre-trained model in the middle, and of the curve of the other direction.
    """
    low, high = sorted((angles[owner], angles[borrower]))
    gap, halfway = high - low, (low + high) / 2
    if gap > math.pi + 1e-6:
        gap, halfway = 2 * math.pi - gap, halfway + math.pi
    chord = radius * math.cos(gap / 2)
    aside = 0.07 * radius if owner < borrower else -0.07 * radius
    return (0.45 * radius + 0.48 * chord + aside) * _direction(halfway)


def _curve(
    start: np.ndarray, bend: np.ndarray | None, stop: np.ndarray, start_disc: float, stop_disc: float
) -> np.ndarray:
    """Returns (n, 2) points from the rim of one node to that of another, through `bend`."""
    t = np.linspace(0, 1, 200)[:, None]
    via = (start + stop) / 2 if bend is None else bend
    control = 2 * via - (start + stop) / 2
    points = (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * stop
    outside = (np.linalg.norm(points - start, axis=1) > start_disc) & (
        np.linalg.norm(points - stop, axis=1) > stop_disc + 0.03
    )
    return points[outside]


def _arrow(curve: np.ndarray, share: float) -> np.ndarray:
    """Returns the outline of an arrow along a curve, as wide as the share."""
    half = max(0.005, 0.11 * share)
    head_half, head_length = half + 0.045, 0.1 + half
    along = np.gradient(curve, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1)
    neck = int(np.argmin(np.linalg.norm(curve - curve[-1], axis=1) > head_length))
    shaft, sides = curve[: neck + 1], normal[: neck + 1]
    return np.concatenate(
        [
            shaft + half * sides,
            [shaft[-1] + head_half * sides[-1], curve[-1], shaft[-1] - head_half * sides[-1]],
            (shaft - half * sides)[::-1],
        ]
    )


def _free_place(curve: np.ndarray, width: float, taken: list[Box]) -> np.ndarray | None:
    """Returns the free place for a label that is nearest to the middle of a curve, and takes it."""
    half = np.array([width / 2 + 0.04, 0.09])
    fractions = np.linspace(0.12, 0.85, 60)
    points = curve[np.rint(fractions * (len(curve) - 1)).astype(int)]
    low, high = np.array(taken)[:, :2], np.array(taken)[:, 2:]
    apart = (points[:, None] + half <= low) | (points[:, None] - half >= high)
    free = np.all(np.any(apart, axis=2), axis=1)
    if not free.any():
        return None
    best = points[free][np.argmin(np.abs(fractions[free] - 0.5))]
    taken.append((*(best - half), *(best + half)))
    return best
