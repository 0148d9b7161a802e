"""The tables and lines of a run as texts, made from its results: for the terminal and the page."""

import functools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cwps_jax.report.costs import short
from cwps_jax.report.html_page import Table
from cwps_jax.report.rows import (
    Spread,
    backward_transfers,
    changed,
    comparable,
    forgotten,
    metric_of,
    names,
    older_bytes,
    spread,
    stored_bytes,
    total,
)

BESIDE = 3  # more methods than these get tables of their own
TAKEN_FROM = "channels taken from"


def run_title(results: Mapping[str, Any]) -> str:
    """Returns the title of a run: method, backbone, numbers of tasks and draws, metric unless accuracy."""
    tasks, draws = (names(results["rows"], key) for key in ("task", "draw"))
    named = "" if metric_of(results["rows"]) == "accuracy" else f", {metric_of(results['rows'])}"
    title = f"{results['method']} on {results['backbone']}, {_tasks(len(tasks))}{named}"
    return f"{title}, {len(draws)} draws: mean (deviation)" if len(draws) > 1 else title


def run_lines(results: Mapping[str, Any]) -> list[str]:
    """Returns lines about the size of all tasks together, forgetting, and tasks that were not measured."""
    tasks = len(names(results["rows"], "task"))
    which, times = "The" if tasks == 1 else "All", _times(total(results, results["method"]), 2)
    return [
        f"{which} {_tasks(tasks)} and the pre-trained model: {times} the backbone's "
        f"{results['backbone_parameters']:,} parameters; a whole network per task is {1 + tasks}x.",
        f"Forgetting: {changed(results)} of {len(comparable(results))} stored tasks changed any bit of "
        "their test logits since they were learned.",
        *_older(results),
        *_left_out(results),
    ]


def _tasks(count: int) -> str:
    return f"{count} task{'' if count == 1 else 's'}"


def tasks_table(results: Mapping[str, Any]) -> Table:
    """Returns a row per task with each method's accuracy, and the size that the run's own method stores."""
    rows, own, methods = results["rows"], results["method"], names(results["rows"], "method")
    methods = methods if len(methods) <= BESIDE else [own]
    borrowed = {row["task"]: row["relation"] for row in rows if row["method"] == own and row["relation"]}
    if len(names(rows, "draw")) > 1:
        borrowed = {}  # every draw has relations of its own
    found = []
    for task in (*names(rows, "task"), None):
        size = spread(rows, own, "bytes", task)
        taken = borrowed_from(task, borrowed[task]) if task in borrowed else ""
        found.append(
            (
                task or "mean",
                *(_percent(spread(rows, method, "accuracy", task)) for method in methods),
                _times(spread(rows, own, "params_ratio", task)),
                f"{size.mean:,.0f}" if size else "-",
                _times(spread(rows, own, "byte_ratio", task)),
                *([taken] if borrowed else []),
            )
        )
    last = [TAKEN_FROM] if borrowed else []
    return ("task", *methods, "kept", "bytes", "in bytes", *last), found


def accuracies_table(results: Mapping[str, Any], tasks: Sequence[str]) -> Table:
    """Returns a row per method with its accuracy on each of these tasks."""
    rows = results["rows"]
    found = [
        (method, *(_percent(spread(rows, method, "accuracy", task)) for task in tasks))
        for method in names(rows, "method")
    ]
    return ("method", *tasks), found


def methods_table(results: Mapping[str, Any]) -> Table:
    """Returns a row per method with its means over the tasks."""
    costs = ("trained", "peak_memory_bytes", "flops_per_step", "seconds")
    found = []
    for method in names(results["rows"], "method"):
        shares = ("accuracy", "params_ratio", "byte_ratio")
        means = {key: spread(results["rows"], method, key) for key in (*shares, *costs)}
        found.append(
            (
                method,
                _percent(means["accuracy"]),
                _times(means["params_ratio"]),
                _times(means["byte_ratio"]),
                _times(total(results, method), 2),
                *(_short(means[key]) for key in costs),
            )
        )
    header = ("kept", "in bytes", "all tasks", "trained", "memory", "FLOPs", "seconds")
    return ("method", metric_of(results["rows"]), *header), found


def storing_table(results: Mapping[str, Any]) -> Table:
    """Returns a row per task with the stored size by the run's own method, and the cost of learning."""
    method = results["method"]
    own = [
        {**row, "own": row["relation"] and row["relation"].get(row["task"], 0.0)}
        for row in results["rows"]
        if row["method"] == method
    ]
    found = []
    for task in names(own, "task"):
        mean = functools.partial(spread, own, method, task=task)
        bits = mean("row_bits")
        found.append(
            (
                task,
                _percent(mean("own")),
                "-" if bits is None else f"{bits.mean:g}" if bits.mean else "fitted to the budget",
                *(_whole(mean(key)) for key in ("parameters", "head_parameters", "epochs")),
                *(_short(mean(key)) for key in ("trained", "peak_memory_bytes", "seconds")),
                _percent(mean("validation_accuracy")),
            )
        )
    stored = ("own channels", "bits of a weight", "parameters", "of its head")
    took = ("epochs", "numbers trained", "memory", "seconds", f"validation {metric_of(results['rows'])}")
    return ("task", *stored, *took), found


def forgetting_table(results: Mapping[str, Any]) -> Table:
    """Returns a row for each stored model: its accuracy when it was learned and at the end."""
    draws = len(names(results["rows"], "draw")) > 1
    found = []
    for one in results["forgetting"]:
        same = "yes" if one["logits_sha256_when_learned"] == one["logits_sha256_at_end"] else "no"
        found.append(
            (
                one["task"] + f", draw {one['draw']}" * draws,
                one["method"],
                f"{100 * one['accuracy_when_learned']:.1f}%",
                f"{100 * one['accuracy_at_end']:.1f}%",
                points(one["accuracy_at_end"] - one["accuracy_when_learned"]),
                same if one in comparable(results) else "cannot be compared",
            )
        )
    header = ("task", "method", "when learned", "at the end", "backward transfer", "bits the same")
    return header, found


def continual_lines(results: Mapping[str, Any]) -> list[str]:
    """Returns the means of backward transfer and forgetting over the stored models, in points."""
    backward = backward_transfers(results)
    lost = forgotten(backward)
    if lost is None:
        return []
    return [
        f"Means in points of {metric_of(results['rows'])}: backward transfer "
        f"{points(statistics.mean(backward))}, forgetting {100 * lost:.1f}. Forward "
        "transfer is not known from one run: a study compares with tasks that are learned alone."
    ]


def totals_table(results: Mapping[str, Any]) -> Table:
    """Returns a row per method with all bytes stored after 0, 1, 2, ... tasks, the backbone included."""
    found = [(method, *(f"{size:,.0f}" for size in sizes)) for method, sizes in stored_bytes(results).items()]
    counts = range(len(names(results["rows"], "task")) + 1)
    return ("method", *(f"bytes after {count}" for count in counts)), found


def budgets_table(results: Mapping[str, Any]) -> Table:
    """Returns a row for each task and budget, if the run hardened several."""
    draws = len(names(results["rows"], "draw")) > 1
    found = [
        (
            one["task"] + f", draw {one['draw']}" * draws,
            f"{one['byte_budget']:g}x",
            f"{one['byte_ratio']:.4f}x",
            f"{one['bytes']:,}",
            f"{100 * one['validation_accuracy']:.1f}%",
            "yes" if one["kept"] else "no",
        )
        for one in results.get("curves", ())
    ]
    validation = f"validation {metric_of(results['rows'])}"
    return ("task", "byte budget", "in bytes", "bytes", validation, "kept"), found


def borrowed_from(task: str, relation: Mapping[str, float], most: int = 2) -> str:
    """Returns the owners of a task's channels, the largest by name: "pretrained 60%, birds 5%"."""
    others = {owner: share for owner, share in relation.items() if owner != task}
    largest = sorted(others, key=lambda owner: -others[owner])
    named = ", ".join(f"{owner} {others[owner]:.0%}" for owner in largest[:most])
    rest = sum(others[owner] for owner in largest[most:])
    return named + (f", others {rest:.0%}" if rest >= 0.005 else "")


def points(value: float) -> str:
    """Returns a difference of shares in points, with its sign: "-0.5"."""
    return f"{100 * value:+.1f}".replace("-0.0", "+0.0")


def _older(results: Mapping[str, Any]) -> list[str]:
    """Returns a line for the older versions whose rows the newest ones still borrow."""
    older = older_bytes(results)
    return [f"Older versions, whose rows these borrow: {older:,.0f} bytes more."] if older else []


def _left_out(results: Mapping[str, Any]) -> list[str]:
    """Returns a line for the tasks that were not measured, or not compared to the bit."""
    lines = [
        f"{one['task']} was not measured: its {metric_of(results['rows'])} is that of when it was learned "
        f"({one['why']})"
        for one in results.get("not_measured", ())
    ]
    if others := len(results["forgetting"]) - len(comparable(results)):
        lines.append(
            f"{others} more were learned by other versions, on another device or spread otherwise: their "
            "logits cannot be compared bit by bit, their accuracies are in results.json."
        )
    return lines


def _percent(share: Spread | None) -> str:
    if share is None:
        return "-"
    beside = "" if share.deviation is None else f" ({100 * share.deviation:.1f})"
    return f"{100 * share.mean:.1f}%{beside}"


def _times(ratio: Spread | None, digits: int = 3) -> str:
    return "-" if ratio is None else f"{ratio.mean:.{digits}f}x"


def _short(mean: Spread | None) -> str:
    return short(mean.mean if mean else None)


def _whole(mean: Spread | None) -> str:
    return "-" if mean is None else f"{mean.mean:,.0f}"
