"""Draws a finished run: who stores which channel, how tasks relate, accuracy against parameters.

The same pool and results give the same PNG files, byte by byte.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cwps_jax.errors import CwpsError
from cwps_jax.report.channel_picture import draw_overview, draw_task
from cwps_jax.report.owners import Colour, on_white, owner_colours
from cwps_jax.report.page import INK, MARGIN, MUTED, RULE, Flow, Page, rgb, shortened, text_width
from cwps_jax.report.relation_picture import draw_relation
from cwps_jax.report.results import FORMAT
from cwps_jax.store.pool import Pool

_METHOD, _FINETUNE, _PROBE = "o", "s", "^"
_MEAN_COLOUR: Colour = (26, 26, 26)


def draw_report(pool: Pool, results: Mapping[str, Any], folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws all pictures of a run.

    Args:
        pool: the stored models.
        results: what was measured, format 1.
        folder: where to write; it is made.

    Returns:
        Paths of the PNG files: channels_<task>.png for each task, channels.png where there is more than
        one, relation.png, accuracy_parameters.png. None for a pool without tasks.

    Raises:
        CwpsError: results of another format.
    """
    if results.get("format") != FORMAT:
        raise CwpsError(f"results of format {results.get('format')!r}; this cwps_jax draws format {FORMAT}")
    folder.mkdir(parents=True, exist_ok=True)
    measured = results["tasks"]
    # Tasks of the pool first: their colours do not depend on what was measured.
    colours = owner_colours([*pool.tasks, *(task["name"] for task in measured)])
    paths = [draw_task(pool, task, colours).save(folder / f"channels_{task}.png") for task in pool.tasks]
    if len(pool.tasks) > 1:
        paths.append(draw_overview(pool, colours).save(folder / "channels.png"))
    if pool.tasks:
        paths.append(draw_relation(pool, colours).save(folder / "relation.png"))
    if measured:
        page = draw_accuracy(results["method"], results["backbone"], measured, colours)
        paths.append(page.save(folder / "accuracy_parameters.png"))
    return paths


def draw_accuracy(
    method: str, backbone: str, tasks: Sequence[Mapping[str, Any]], colours: Mapping[str, Colour]
) -> Page:
    """Draws accuracy against the parameters that a task keeps, with fine-tuning and the probe beside it.

    Args:
        method: name of the method.
        backbone: name of the backbone.
        tasks: results of the tasks.
        colours: of every owner.
    """
    lines = [_line(task) for task in tasks]
    names = [shortened(task["name"]) for task in tasks]
    kinds = [kind for kind in (_PROBE, _METHOD, _FINETUNE) if any(kind in line for line in lines)]
    several = len(tasks) > 1
    legend_left = MARGIN + 0.7 + 5.6 + 0.35
    flow = Flow.of(names, 0.0)
    legend_width = max(text_width(text, 9) for text in (*names, "mean over tasks")) + 0.3
    kinds_height = 0.23 * (len(kinds) + several) + 0.15
    height = max(3.9, kinds_height + flow.height)
    page = Page(legend_left + legend_width + MARGIN, 0.95 + height + 0.75)
    page.title(
        "Accuracy against the parameters that a task keeps",
        f"On the test set, {method} on {backbone}; a line joins what was measured of one task.",
    )
    axes = page.inset(MARGIN + 0.7, 0.95, 5.6, height)
    for line, task in zip(lines, tasks, strict=True):
        _draw_line(axes, line, colours[task["name"]], 7, "-")
    if several:
        _draw_line(axes, _mean(lines), _MEAN_COLOUR, 12, "--")
    _dress(axes, lines)
    for place, kind in enumerate(kinds):
        text = {_METHOD: method, _FINETUNE: "fine-tuning", _PROBE: "probe"}[kind]
        _legend_marker(page, legend_left, 1.05 + 0.23 * place, kind, 7, text)
    if several:
        _legend_marker(page, legend_left, 1.05 + 0.23 * len(kinds), _METHOD, 12, "mean over tasks")
    entries = [(colours[task["name"]], name) for task, name in zip(tasks, names, strict=True)]
    page.legend(legend_left, 0.95 + kinds_height, entries, flow)
    return page


Line = dict[str, tuple[float, float]]


def _line(task: Mapping[str, Any]) -> Line:
    """Returns {marker: (parameters kept, accuracy)} of one task, in the order of the parameters."""
    line = {_METHOD: (float(task["params_ratio"]), float(task["accuracy"]))}
    if task.get("probe_accuracy") is not None:
        line[_PROBE] = (0.0, float(task["probe_accuracy"]))
    if task.get("finetune_accuracy") is not None:
        line[_FINETUNE] = (1.0, float(task["finetune_accuracy"]))
    return dict(sorted(line.items(), key=lambda item: item[1]))


def _mean(lines: Sequence[Line]) -> Line:
    """Returns the mean over tasks of every marker that all of them have: other means do not compare."""
    found = {}
    for kind in lines[0]:
        if all(kind in line for line in lines):
            x, y = (sum(line[kind][axis] for line in lines) / len(lines) for axis in (0, 1))
            found[kind] = (x, y)
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _draw_line(axes: Axes, line: Line, colour: Colour, size: float, dashes: str) -> None:
    # The large markers of the mean lie under the tasks' small ones, so that none is hidden.
    front = 3 if dashes == "--" else 5
    points = list(zip(*line.values(), strict=True))
    edge = rgb(on_white(colour))
    axes.plot(*points, color=edge, linewidth=0.9, linestyle=dashes, alpha=0.8, zorder=front - 1)
    for kind, (x, y) in line.items():
        fill = rgb(colour) if kind == _METHOD else "white"
        axes.plot([x], [y], kind, color=edge, markersize=size, markerfacecolor=fill, zorder=front)


def _dress(axes: Axes, lines: Sequence[Line]) -> None:
    """Zooms to the data and draws grid and axes."""
    accuracies = [y for line in lines for _, y in line.values()]
    low, high = min(accuracies), max(accuracies)
    room = max(0.08 * (high - low), 0.005)
    widest = max(x for line in lines for x, _ in line.values())
    axes.set(xlim=(-0.04, max(1.0, widest) + 0.04), ylim=(low - room, high + room))
    axes.set_xlabel("parameters kept by the task / parameters of the backbone", fontsize=9, color=INK)
    axes.set_ylabel("accuracy", fontsize=9, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    # The room above the data may reach past 100%, which is no accuracy.
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: "" if value > 1 + 1e-9 else f"{100 * value:.4g}%")
    )
    axes.tick_params(labelsize=9, color=MUTED, labelcolor=INK)
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _legend_marker(page: Page, x: float, y: float, kind: str, size: float, text: str) -> None:
    colour = INK if size > 7 else MUTED
    fill = colour if kind == _METHOD else "white"
    page.axes.plot([x + 0.07], [y], kind, color=colour, markersize=size, markerfacecolor=fill)
    page.text(x + 0.21, y, text)
