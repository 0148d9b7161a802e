"""Draws a study: accuracy against each cost, and all stored bytes against the number of tasks."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from cwps_jax.report.costs import short
from cwps_jax.report.owners import on_white, series_colours
from cwps_jax.report.page import INK, MARGIN, SHAPES, Flow, Page, dressed, rgb, shortened
from cwps_jax.report.total_picture import draw_total

WIDTH, HEIGHT = 6.4, 4.0  # of the axes, in inches
COSTS = {
    "bytes": "bytes stored for a task, all included",
    "parameters": "parameters stored for a task, without its head",
    "peak_memory_bytes": "bytes of memory that a training step needs",
    "seconds": "seconds of training for a task",
}


def draw_study(report: Mapping[str, Any], folder: pathlib.Path) -> dict[int, list[tuple[pathlib.Path, str]]]:
    """Draws the pictures of a report's sections, except for tasks learned alone, which are references.

    Args:
        report: see `summarise`.
        folder: where to write; it is made.

    Returns:
        {number of a section: the path of each PNG file, and what it shows}.
    """
    folder.mkdir(parents=True, exist_ok=True)
    most = max(len(section["tasks"]) for section in report["sections"])
    found: dict[int, list[tuple[pathlib.Path, str]]] = {}
    for number, section in enumerate(report["sections"]):
        if len(section["tasks"]) < most:
            continue
        own = found[number] = []
        for cost, axis in COSTS.items():
            groups = [group for group in section["groups"] if group[cost] and group[cost]["mean"] > 0]
            groups = [group for group in groups if group["accuracy"]]
            if groups:
                path = draw_cost(section, groups, cost).save(folder / f"{number}_accuracy_{cost}.png")
                own.append((path, f"Test accuracy against {axis}: {section['title']}"))
        if any(group["total_bytes"] for group in section["groups"]):
            totals = {
                group["label"]: group["total_bytes"] for group in section["groups"] if group["total_bytes"]
            }
            path = draw_total(section["backbone_parameters"], totals).save(
                folder / f"{number}_total_bytes.png"
            )
            own.append((path, f"All bytes stored against the number of tasks: {section['title']}"))
    return found


def draw_cost(section: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], cost: str) -> Page:
    """Draws test accuracy against a cost, with the front that validation accuracy gives.

    Args:
        section: of a report.
        groups: its groups that have accuracy and cost.
        cost: a key of `COSTS`.
    """
    title = f"Accuracy against {COSTS[cost]}"
    how = "A point: a group's mean over tasks and seeds, and its deviation. Large: the front on validation."
    page, axes, style = _begun(title, how, groups)
    for group in groups:
        shape, ink = style(group)
        on_front = group["front"][cost]
        axes.errorbar(
            group[cost]["mean"], group["accuracy"]["mean"], xerr=group[cost]["deviation"],
            yerr=group["accuracy"]["deviation"], fmt=shape, color=ink, markersize=9 if on_front else 5,
            alpha=1 if on_front else 0.55, elinewidth=1, capsize=2.5, markeredgecolor="white", zorder=4,
        )  # fmt: skip
    values = [group[cost]["mean"] for group in groups]
    reached = [group["accuracy"]["mean"] for group in groups]
    wide = max((group["accuracy"]["deviation"] or 0) for group in groups)
    room = max(0.08 * (max(reached) - min(reached)), 0.005) + wide
    axes.set(xscale="log", xlim=(min(values) / 2, max(values) * 2))
    axes.set_ylim(min(reached) - room, min(max(reached) + room, 1.02))
    axes.set_ylabel("test accuracy", fontsize=9, color=INK)
    axes.set_xlabel(COSTS[cost], fontsize=9, color=INK)
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if max(values) / min(values) > 1e3 else (1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: "" if value > 1 + 1e-9 else f"{100 * value:.4g}%")
    )
    return page


def _begun(
    title: str, how: str, groups: Sequence[Mapping[str, Any]]
) -> tuple[Page, Axes, Callable[[Mapping[str, Any]], tuple[str, Any]]]:
    """Returns a page with its axes, and a function from a group to the shape and colour of its series."""
    series = list(dict.fromkeys(map(_series, groups)))
    colours = series_colours(series)
    shapes = {name: SHAPES[place % len(SHAPES)] for place, name in enumerate(series)}
    left, top = MARGIN + 0.75, 0.95
    texts = [shortened(name, 40) for name in series]
    flow = Flow.of(texts, WIDTH)
    page = Page(left + WIDTH + MARGIN, top + HEIGHT + 0.65 + flow.height + 0.1)
    page.title(title, how)
    axes = dressed(page.inset(left, top, WIDTH, HEIGHT))
    for name, text, (dx, dy) in zip(series, texts, flow.places, strict=True):
        x, y = left + dx, top + HEIGHT + 0.6 + dy
        ink = rgb(on_white(colours[name]))
        page.axes.plot([x + 0.07], [y], shapes[name], color=ink, markersize=6)
        page.text(x + 0.21, y, text)
    return (
        page,
        axes,
        lambda group: (
            shapes[_series(group)],
            rgb(on_white(colours[_series(group)])),
        ),
    )


def _series(group: Mapping[str, Any]) -> str:
    """Returns the part of a group's label that decides its colour: everything that is not a number."""
    words = [
        str(value) if key == "method" else f"{key} {value}"
        for key, value in group["values"].items()
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float))
    ]
    return ", ".join(words) or group["method"]


def _short(value: float, _: Any) -> str:
    return short(value).replace(" ", "\u2009") if value else "0"
