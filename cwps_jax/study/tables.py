"""The tables of a study's report: as rows of texts, and as Markdown for documentation pages."""

from collections.abc import Mapping
from typing import Any

from cwps_jax.report.costs import short
from cwps_jax.report.html_page import Table
from cwps_jax.report.run_tables import points


def groups_table(section: Mapping[str, Any]) -> Table:
    """Returns the means of each group: accuracy, the difference to the baseline, if any, and the costs."""
    compared = any(group["is_baseline"] or group["difference"] for group in section["groups"])
    header = (
        *("", "test accuracy", "validation", *["against the baseline"] * compared, "kept", "bytes per task"),
        *("of a backbone", "numbers trained", "memory", "seconds", "seeds"),
    )
    rows = []
    for group in section["groups"]:
        kept = group["params_ratio"]
        against = "baseline" if group["is_baseline"] else _difference(group["difference"])
        rows.append(
            (
                group["label"] + " *" * group["best"],
                _percent(group["accuracy"]),
                _percent(group["validation_accuracy"]),
                *[against] * compared,
                f"{kept['mean']:.3f}x" if kept else "-",
                f"{group['bytes']['mean']:,.0f}" if group["bytes"] else "-",
                f"{group['bytes_ratio']:.4f}x" if group["bytes_ratio"] is not None else "-",
                *(_short(group[key]) for key in ("trained", "peak_memory_bytes", "seconds")),
                str(len(group["seeds"])),
            )
        )
    return header, rows


def tasks_table(section: Mapping[str, Any]) -> Table:
    """Returns each group's test accuracy on each task."""
    rows = [
        (group["label"], *(_percent(group["tasks"][task]) for task in section["tasks"]))
        for group in section["groups"]
    ]
    return ("", *section["tasks"]), rows


def continual_table(section: Mapping[str, Any]) -> Table:
    """Returns the transfer between tasks, and all stored bytes after each task."""
    counts = range(len(section["tasks"]) + 1)
    header = (
        *("", "forward transfer", "backward transfer", "forgetting", "tasks changed in any bit"),
        *(f"bytes after {count}" for count in counts),
    )
    rows = []
    for group in section["groups"]:
        known = group["continual"]
        total = (
            [f"{size:,.0f}" for size in group["total_bytes"]]
            if group["total_bytes"]
            else ["-" for _ in counts]
        )
        moved = (_points(known[key]) for key in ("forward_transfer", "backward_transfer"))
        lost = "-" if known["forgetting"] is None else f"{100 * known['forgetting']:.1f}"
        rows.append((group["label"], *moved, lost, str(known["changed_tasks"]), *total))
    return header, rows


def markdown(report: Mapping[str, Any]) -> str:
    """Returns a report's tables of groups in Markdown, for a documentation page."""
    parts = []
    for section in report["sections"]:
        header, rows = groups_table(section)
        lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        parts.append("\n".join([f"**{section['title']}** ({section['backbone']})", "", *lines]))
    return "\n\n".join([*parts, how_to_read(report)]).replace("|  |", "| |")


def how_to_read(report: Mapping[str, Any]) -> str:
    """Returns an explanation of the tables' numbers, and the device and versions."""
    versions = report["versions"]
    done = report["cells"]
    share = "" if done["finished"] == done["asked"] else f"{done['finished']} of {done['asked']} cells. "
    against = (
        "Against the baseline: the mean difference in points, paired by seed, with its 95% interval "
        "(Student's t). "
        if report["baseline"]
        else ""
    )
    return (
        f"{share}Means over tasks, with the deviation over seeds in brackets. {against}The star marks what "
        "validation accuracy chooses. Seconds are those of a task's epochs, the median over "
        "tasks and seeds. On "
        f"{versions.get('device', '?')}, jax {versions.get('jax', '?')}."
    )


def _percent(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "-"
    beside = "" if value["deviation"] is None else f" ({100 * value['deviation']:.1f})"
    return f"{100 * value['mean']:.1f}{beside}"


def _difference(value: Mapping[str, Any] | None) -> str:
    if value is None or value["mean"] is None:
        return "-"
    interval = "" if value["low"] is None else f" [{points(value['low'])}, {points(value['high'])}]"
    return f"{points(value['mean'])}{interval}"


def _points(value: float | None) -> str:
    return "-" if value is None else points(value)


def _short(value: Mapping[str, Any] | None) -> str:
    return short(value["mean"] if value else None)
