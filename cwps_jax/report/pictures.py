"""Draws a finished run: the owners of channels, the relation of tasks, accuracy and tasks against bytes.

The same pool and results give the same PNG files, byte by byte.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from cwps_jax.report.channel_picture import draw_overview, draw_task
from cwps_jax.report.costs import short
from cwps_jax.report.owners import on_white, owner_colours, series_colours
from cwps_jax.report.page import INK, MARGIN, SHAPES, Page, dressed, rgb, shortened, text_width
from cwps_jax.report.relation_picture import draw_relation
from cwps_jax.report.rows import Rows, metric_of, names, spread, stored_bytes
from cwps_jax.report.total_picture import draw_total
from cwps_jax.store.pool import Pool


def draw_report(pool: Pool, results: Mapping[str, Any], folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws all pictures of a run.

    Args:
        pool: the stored models.
        results: the content of results.json, see docs/results.md.
        folder: where to write; it is made.

    Returns:
        Paths of the PNG files: channels_<task>.png for each task that has owners of channels, channels.png
        where there is more than one, and those of `draw_comparison`. None for a pool without tasks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    relations = _relations(results)
    colours = owner_colours(relations)
    paths = [draw_task(pool, task, colours).save(folder / f"channels_{task}.png") for task in relations]
    if len(relations) > 1:
        paths.append(draw_overview(pool, [*relations], colours).save(folder / "channels.png"))
    return [*paths, *draw_comparison(results, folder)]


def draw_comparison(results: Mapping[str, Any], folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws the pictures that need no pool.

    Args:
        results: the content of results.json.
        folder: where to write; it is made.

    Returns:
        Paths of the PNG files: relation.png for tasks that have owners of channels, of one draw;
        accuracy_bytes.png where any row says how many bytes it takes, total_bytes.png where all rows of a
        method do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    relations, totals = _relations(results), stored_bytes(results)
    known = [row for row in results["rows"] if row["bytes"]]
    paths = []
    if relations:
        paths.append(draw_relation(relations, owner_colours(relations)).save(folder / "relation.png"))
    if known:
        paths.append(draw_accuracy(results["backbone"], known).save(folder / "accuracy_bytes.png"))
    if totals:
        page = draw_total([results["backbone_parameters"]], totals)
        paths.append(page.save(folder / "total_bytes.png"))
    return paths


def _relations(results: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """Returns the relation of each task that has one; none of several draws, whose tasks take otherwise."""
    rows = results["rows"]
    if len(names(rows, "draw")) > 1:
        return {}
    return {row["task"]: row["relation"] for row in rows if row["relation"]}


def draw_accuracy(backbone: str, rows: Rows) -> Page:
    """Draws accuracy against the bytes that a task takes: a marker and a colour a method.

    Args:
        backbone: name of the backbone.
        rows: with their bytes; of several draws, deviations are drawn too.
    """
    methods, draws = names(rows, "method"), names(rows, "draw")
    left, top, width = MARGIN + 0.7, 0.95, 5.6
    legend_left = left + width + 0.35
    height = max(3.9, 0.23 * len(methods))
    legend_width = max(text_width(shortened(method), 9) for method in methods) + 0.3
    page = Page(legend_left + legend_width + MARGIN, top + height + 0.75)
    spreads = " with deviations over draws" if len(draws) > 1 else ""
    page.title(
        f"{metric_of(rows)[:1].upper()}{metric_of(rows)[1:]} against the bytes that a task takes",
        f"On the test set, {backbone}. Small: a task. Large: a method's mean over tasks{spreads}.",
    )
    axes = page.inset(left, top, width, height)
    colours = series_colours(methods)
    for place, method in enumerate(methods):
        shape, ink = SHAPES[place % len(SHAPES)], rgb(on_white(colours[method]))
        own = [row for row in rows if row["method"] == method]
        points = [row["bytes"] for row in own], [row["accuracy"] for row in own]
        axes.plot(*points, shape, color=ink, markersize=4, alpha=0.35, markeredgewidth=0, zorder=3)
        size, accuracy = (spread(rows, method, key) for key in ("bytes", "accuracy"))
        if size and accuracy:  # there is no mean of a method that lacks a task
            axes.errorbar(
                size.mean, accuracy.mean, xerr=size.deviation, yerr=accuracy.deviation, fmt=shape, color=ink,
                markersize=9, elinewidth=1.2, capsize=2.5, markeredgecolor="white", zorder=5,
            )  # fmt: skip
        y = top + 0.12 + 0.23 * place
        page.axes.plot([legend_left + 0.07], [y], shape, color=ink, markersize=7)
        page.text(legend_left + 0.23, y, shortened(method))
    _dress(axes, rows)
    return page


def _dress(axes: Axes, rows: Rows) -> None:
    """Zooms to the data and draws grid and axes."""
    accuracies, sizes = ([row[key] for row in rows] for key in ("accuracy", "bytes"))
    low, high = min(accuracies), max(accuracies)
    room = max(0.08 * (high - low), 0.005)
    # At least a factor of nine, so that the axis has numbers.
    axes.set(xscale="log", xlim=(min(sizes) / 3, max(sizes) * 3), ylim=(low - room, high + room))
    axes.set_xlabel("bytes stored for the task, all included", fontsize=9, color=INK)
    axes.set_ylabel(metric_of(rows), fontsize=9, color=INK)
    decades = max(sizes) / min(sizes) > 1e3
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if decades else (1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{short(value)}B".replace(" ", "\u2009")))
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
    # The room above the data may reach past 100%, which is no accuracy.
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: "" if value > 1 + 1e-9 else f"{100 * value:.4g}%")
    )
    dressed(axes)
