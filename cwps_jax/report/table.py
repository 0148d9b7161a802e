"""The tables that a run ends with, made from the rows of its results."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from cwps_jax.report.costs import short
from cwps_jax.report.rounds import HEADER, rounds_table
from cwps_jax.report.rows import Rows, Spread, changed, comparable, metric_of, names, spread, total

_BESIDE = 3  # more methods than these get tables of their own


def show_results(results: Mapping[str, Any], console: Console) -> None:
    """Prints the accuracies by task, what each method costs, and what all tasks cost together."""
    rows, method = results["rows"], results["method"]
    methods, tasks, draws = (names(rows, key) for key in ("method", "task", "draw"))
    named = "" if metric_of(rows) == "accuracy" else f": {metric_of(rows)}"
    title = f"{method} on {results['backbone']}, {len(tasks)} tasks{named}"
    if len(draws) > 1:
        title += f", {len(draws)} draws: mean (deviation)"
    console.print(_tasks(title, rows, methods if len(methods) <= _BESIDE else [method], method))
    if results.get("rounds"):
        by_round = _table(f"{method} by round, means over the tasks{named}", HEADER[0], HEADER[1:])
        for row in rounds_table(results["rounds"]):
            by_round.add_row(*row)
        console.print(by_round)
    if len(methods) > 1:
        console.print(_methods(results, methods))
    if len(methods) > _BESIDE:
        column = max(len("100.0% (0.0)" if len(draws) > 1 else "100.0%"), *map(len, tasks)) + 3
        fitting = max(1, (console.width - max(map(len, methods)) - 4) // column)
        for first in range(0, len(tasks), fitting):
            console.print(_accuracies(rows, methods, tasks[first : first + fitting]))
    lines = (
        f"All {len(tasks)} tasks and the pre-trained model: {_times(total(results, method), 2)} the "
        f"backbone's {results['backbone_parameters']:,} parameters; a whole network per task is "
        f"{1 + len(tasks)}x.",
        f"Forgetting: {changed(results)} of {len(comparable(results))} stored tasks changed any bit of "
        "their test logits since they were learned.",
        *_older(results),
        *_left_out(results),
    )
    console.print(*lines, sep="\n", highlight=False)


def _older(results: Mapping[str, Any]) -> list[str]:
    """Returns a line for the older versions that the newest ones still borrow rows of."""
    rounds = results.get("rounds") or [{"round": 0, "older_bytes": 0}]
    last = [one["older_bytes"] for one in rounds if one["round"] == rounds[-1]["round"]]
    return [f"Older versions, whose rows these borrow: {sum(last):,} bytes more."] if sum(last) else []


def _left_out(results: Mapping[str, Any]) -> list[str]:
    """Returns a line for what was not measured, or not compared to the bit."""
    lines = [
        f"{one['task']} was not measured: its accuracy is that of when it was learned ({one['why']})"
        for one in results.get("not_measured", ())
    ]
    if others := len(results["forgetting"]) - len(comparable(results)):
        lines.append(
            f"{others} more were learned by other versions, on another device or spread otherwise: their "
            "logits cannot be compared bit by bit, their accuracies are in results.json."
        )
    return lines


def _tasks(title: str, rows: Rows, methods: Sequence[str], own: str) -> Table:
    """Returns a row a task with each method's accuracy, and what the run's own method keeps of it."""
    table = _table(title, "task", [*methods, "kept", "bytes", "in bytes"])
    borrowed = {row["task"]: row["relation"] for row in rows if row["method"] == own and row["relation"]}
    if len(names(rows, "draw")) > 1:
        borrowed = {}  # every draw has relations of its own
    if borrowed:
        table.add_column("channels taken from", no_wrap=True)
    for task in (*names(rows, "task"), None):
        if task is None:
            table.add_section()
        size = spread(rows, own, "bytes", task)
        table.add_row(
            task or "mean",
            *(_percent(spread(rows, method, "accuracy", task)) for method in methods),
            _times(spread(rows, own, "params_ratio", task)),
            f"{size.mean:,.0f}" if size else "-",
            _times(spread(rows, own, "byte_ratio", task)),
            *([borrowed_from(task, borrowed[task])] if task in borrowed else []),
        )
    return table


def _accuracies(rows: Rows, methods: Sequence[str], tasks: Sequence[str]) -> Table:
    """Returns a row a method with its accuracy on each of these tasks."""
    table = _table(f"{metric_of(rows)} by task", "method", tasks)
    for method in methods:
        table.add_row(method, *(_percent(spread(rows, method, "accuracy", task)) for task in tasks))
    return table


def _methods(results: Mapping[str, Any], methods: Sequence[str]) -> Table:
    """Returns a row a method with its means over the tasks."""
    costs = ("trained", "peak_memory_bytes", "flops_per_step", "seconds")
    headers = (
        metric_of(results["rows"]),
        "kept",
        "in bytes",
        "all tasks",
        "trained",
        "memory",
        "FLOPs",
        "seconds",
    )
    table = _table("means over the tasks", "method", headers)
    for method in methods:
        shares = ("accuracy", "params_ratio", "byte_ratio")
        means = {key: spread(results["rows"], method, key) for key in (*shares, *costs)}
        table.add_row(
            method,
            _percent(means["accuracy"]),
            _times(means["params_ratio"]),
            _times(means["byte_ratio"]),
            _times(total(results, method), 2),
            *(short(mean.mean if (mean := means[key]) else None) for key in costs),
        )
    return table


def _table(title: str, first: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def borrowed_from(task: str, relation: Mapping[str, float], most: int = 2) -> str:
    """Returns from whom a task took its channels, the largest owners by name: "pretrained 60%, birds 5%"."""
    others = {owner: share for owner, share in relation.items() if owner != task}
    largest = sorted(others, key=lambda owner: -others[owner])
    named = ", ".join(f"{owner} {others[owner]:.0%}" for owner in largest[:most])
    rest = sum(others[owner] for owner in largest[most:])
    return named + (f", others {rest:.0%}" if rest >= 0.005 else "")


def _percent(share: Spread | None) -> str:
    if share is None:
        return "-"
    beside = "" if share.deviation is None else f" ({100 * share.deviation:.1f})"
    return f"{100 * share.mean:.1f}%{beside}"


def _times(ratio: Spread | None, digits: int = 3) -> str:
    return "-" if ratio is None else f"{ratio.mean:.{digits}f}x"
