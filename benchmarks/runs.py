"""Tables of learned tasks, made from the rows of results.json; they know no method by name."""

import functools
import statistics
from collections.abc import Callable
from typing import Any

from cwps_jax.report import format_1
from cwps_jax.report.rounds import rounds_table
from cwps_jax.report.rows import Spread, changed, comparable, names, spread, total

Find = Callable[[str, str, str | None], Spread | None]


def result_rows(backbone: str, tasks: list[str], methods: list[str], find: Find) -> list[str]:
    """Returns the rows of a table of results: one a task, and the mean.

    Args:
        backbone: its name.
        tasks: the rows.
        methods: a column each, the run's own first; of that one the share and the bytes are told too.
        find: from a method, a key of `ROW` and a task, or None for the mean over tasks, to what to show.
    """
    own = methods[0]
    columns = [f"{method}, accuracy" for method in methods] + [f"parameters kept by {own} ({backbone})"]
    with_bytes = find(own, "bytes", tasks[0]) is not None
    columns += ["bytes"] * with_bytes
    lines = [f"| task | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for task in (*tasks, None):
        cells = [_percent(find(method, "accuracy", task)) for method in methods]
        ratio, size = find(own, "params_ratio", task), find(own, "bytes", task)
        cells.append(f"{ratio.mean:.3f}x" if ratio else "-")
        if with_bytes:
            cells.append(f"{size.mean:,.0f}" if size and task else "")
        lines.append(f"| {task or 'mean'} | {' | '.join(cells)} |".replace("|  |", "| |"))
    return lines


def run_table(run: dict[str, Any]) -> str:
    """Returns the table of a run in one draw or several, with what it was run on."""
    rows = run["rows"]
    tasks, methods, seeds = (names(rows, key) for key in ("task", "method", "seed"))
    how = f"Seed {seeds[0]}, {rows[0]['epochs']} epochs per task" if len(seeds) == 1 else _draws(seeds)
    together = total(run, run["method"]).mean
    return "\n".join(
        [
            *result_rows(run["backbone"], tasks, methods, functools.partial(spread, rows)),
            "",
            f"{how}, on {_where(run)}. {_together(together, tasks)} Tasks whose test "
            f"logits changed in any bit after they were learned: {changed(run)}.",
        ]
    )


def summary_table(run: dict[str, Any]) -> str:
    """Returns the table of several draws of format 1, of which only means and deviations are known."""
    by_task: dict[str | None, Any] = {task["name"]: task for task in run["tasks"]} | {None: run["mean"]}
    keys = format_1.methods(run["method"], run["mean"])

    def find(method: str, key: str, task: str | None) -> Spread | None:
        known = by_task[task].get(keys[method] if key == "accuracy" else key)
        return Spread(**known) if known else None

    tasks = [task["name"] for task in run["tasks"]]
    together = statistics.mean(draw["total_params_ratio"] for draw in run["draws"])
    how = _draws([draw["seed"] for draw in run["draws"]])
    return "\n".join(
        [
            *result_rows(run["backbone"], tasks, list(keys), find),
            "",
            f"{how}, on {_where(run)}. {_together(together, tasks)}",
        ]
    )


def by_round_table(run: dict[str, Any]) -> str:
    """Returns the table of a run's rounds over its tasks."""
    header, rows = rounds_table(run["rounds"])
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ("---",) * len(header), *rows))


def methods_table(run: dict[str, Any]) -> str:
    """Returns the table of a run's methods: a row each, with means over the tasks."""
    rows = run["rows"]
    tasks, methods = names(rows, "task"), names(rows, "method")
    lines = ["| method | accuracy | parameters kept | bytes | numbers trained |", "|---|---|---|---|---|"]
    for method in methods:
        ratio, size, trained = (
            spread(rows, method, key).mean for key in ("params_ratio", "bytes", "trained")
        )
        accuracy = _percent(spread(rows, method, "accuracy"))
        lines.append(f"| {method} | {accuracy} | {ratio:.3f}x | {size:,.0f} | {trained:,.0f} |")
    lines += [
        "",
        f"Means over {', '.join(tasks)}: {run['backbone']}, seed {rows[0]['seed']}, {rows[0]['epochs']} "
        f"epochs, on {_where(run)}. Stored models whose test logits changed in any bit after they were "
        "learned: "
        f"{changed(run)} of {len(run['forgetting'])}.",
    ]
    return "\n".join(lines)


def _where(run: dict[str, Any]) -> str:
    return f"{run['versions']['device']}, jax {run['versions']['jax']}"


def _draws(seeds: list[int]) -> str:
    return f"Mean and deviation over the draws with seeds {', '.join(map(str, seeds))}"


def _together(ratio: float, tasks: list[str]) -> str:
    return (
        f"Together with the pre-trained model {ratio:.2f}x a backbone, where a whole network per task would "
        f"be {1 + len(tasks)}x."
    )


def demo_table(runs: list[dict[str, Any]]) -> str:
    """Returns the table of the demo: seed 0 a task, and the means over tasks of every seed."""
    first, rows = runs[0], runs[0]["rows"]
    # A seed is a draw here: each has a file of its own.
    every = [{**row, "draw": seed} for seed, run in enumerate(runs) for row in run["rows"]]
    tasks, methods = names(rows, "task"), names(rows, "method")
    own, *others = (
        f"{_percent(spread(every, method, 'accuracy'), 'deviation ')} by {method}" for method in methods
    )
    return "\n".join(
        [
            *result_rows(first["backbone"], tasks, methods, functools.partial(spread, rows)),
            "",
            f"`make demo`, seed 0, on {_where(first)}. "
            f"{_together(first['totals'][0]['params_ratio'], tasks)} Means over the tasks with seeds 0 to "
            f"{len(runs) - 1}: {own} against {' and '.join(others)}. A task's test set has about 520 images: "
            f"one seed's accuracy is good to about 0.7 points. Tasks whose test logits changed in any bit "
            f"after they were learned: {sum(map(changed, runs))}.",
        ]
    )


def numbers_table(runs: list[dict[str, Any]], coded: list[dict[str, Any]], how: str) -> str:
    """Returns what the demo says in three numbers for each method: means over tasks and seeds.

    Args:
        runs: the demo with several seeds, its own method first.
        coded: the same by the demo's own method with other settings.
        how: says what these are.
    """
    drawn = lambda of: [{**row, "draw": seed} for seed, run in enumerate(of) for row in run["rows"]]
    rows = drawn(runs)
    own, *compared = names(rows, "method")
    columns = {
        own: (rows, own, runs),
        f"{own}, {how}": (drawn(coded), own, coded),
        **{method: (rows, method, None) for method in compared},
    }
    accuracy = (_percent(spread(of, method, "accuracy")) for of, method, _ in columns.values())
    size = (f"{spread(of, method, 'bytes').mean:,.0f}" for of, method, _ in columns.values())
    count = lambda of: f"{sum(map(changed, of))} of {sum(len(comparable(run)) for run in of)}"
    moved = (count(of) if of else "-" for _, _, of in columns.values())
    return "\n".join(
        [
            f"| | {' | '.join(columns)} |",
            "|---" * (1 + len(columns)) + "|",
            f"| test accuracy, % (deviation over seeds) | {' | '.join(accuracy)} |",
            f"| bytes stored per task | {' | '.join(size)} |",
            f"| learned tasks whose test logits changed in any bit later | {' | '.join(moved)} |",
            "",
            f"`make demo`: {len(names(rows, 'task'))} tasks on handwritten digits, a small ResNet "
            f"({runs[0]['backbone_parameters']:,} parameters), seeds 0 to {len(runs) - 1}, "
            f"on {_where(runs[0])}.",
        ]
    )


def _percent(share: Spread | None, word: str = "") -> str:
    if share is None:
        return "-"
    beside = "" if share.deviation is None else f" ({word}{100 * share.deviation:.1f})"
    return f"{100 * share.mean:.1f}{beside}"
