"""The table that a run ends with."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def show_results(results: Mapping[str, Any], console: Console) -> None:
    """Prints a row a task, their means, and what all tasks cost together."""
    tasks = results["tasks"]
    table = Table(
        title=f"{results['method']} on {results['backbone']}, {len(tasks)} tasks", title_justify="left"
    )
    table.add_column("task", no_wrap=True)
    for column in ("accuracy", "fine-tuning", "probe", "kept", "parameters", "bytes"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("channels taken from", no_wrap=True)
    for task in tasks:
        kept = task["active_parameters"] + task["private_parameters"]
        table.add_row(
            task["name"],
            _percent(task["accuracy"]),
            _percent(task["finetune_accuracy"]),
            _percent(task["probe_accuracy"]),
            f"{task['params_ratio']:.3f}x",
            f"{kept:,}",
            f"{task['bytes']:,}",
            _borrowed(task),
        )
    table.add_section()
    table.add_row(
        "mean",
        *(_percent(_mean(tasks, key)) for key in ("accuracy", "finetune_accuracy", "probe_accuracy")),
        f"{_mean(tasks, 'params_ratio'):.3f}x",
    )
    console.print(table)
    changed = sum(
        row["logits_sha256_when_learned"] != row["logits_sha256_at_end"] for row in results["forgetting"]
    )
    console.print(
        f"All {len(tasks)} tasks and the pre-trained model: {results['total_params_ratio']:.2f}x the "
        f"backbone's {results['backbone_parameters']:,} parameters; fine-tuning keeps {1 + len(tasks)}x.",
        highlight=False,
    )
    console.print(
        f"Forgetting: {changed} of {len(tasks)} tasks changed any bit of their test logits since they were "
        "learned.",
        highlight=False,
    )


def show_draws(results: Mapping[str, Any], console: Console) -> None:
    """Prints a row a task with means and deviations over the draws, and the means over all tasks."""
    what = f"{results['method']} on {results['backbone']}, {len(results['draws'])} draws"
    table = Table(title=f"{what}: mean (deviation)", title_justify="left")
    table.add_column("task", no_wrap=True)
    for column in ("accuracy", "fine-tuning", "probe", "kept"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in (*results["tasks"], {"name": "mean", **results["mean"]}):
        accuracies = (row[key] for key in ("accuracy", "finetune_accuracy", "probe_accuracy"))
        kept = row["params_ratio"]
        table.add_row(row["name"], *map(_percent_spread, accuracies), f"{kept['mean']:.3f}x")
    console.print(table)


def _percent_spread(spread: Mapping[str, float] | None) -> str:
    return "-" if spread is None else f"{100 * spread['mean']:.1f} ({100 * spread['deviation']:.1f})"


def _borrowed(task: Mapping[str, Any], most: int = 2) -> str:
    others = {owner: share for owner, share in task["relation"].items() if owner != task["name"]}
    largest = sorted(others, key=lambda owner: -others[owner])
    named = ", ".join(f"{owner} {others[owner]:.0%}" for owner in largest[:most])
    rest = sum(others[owner] for owner in largest[most:])
    return named + (f", others {rest:.0%}" if rest >= 0.005 else "")


def _mean(tasks: list[Mapping[str, Any]], key: str) -> float | None:
    values = [task[key] for task in tasks if task[key] is not None]
    return sum(values) / len(values) if values else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"
