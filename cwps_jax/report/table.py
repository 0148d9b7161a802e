"""Prints the tables that a run ends with."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from cwps_jax.report import html_page
from cwps_jax.report.rounds import rounds_table
from cwps_jax.report.rows import metric_of, names
from cwps_jax.report.run_tables import (
    BESIDE,
    TAKEN_FROM,
    accuracies_table,
    methods_table,
    run_lines,
    run_title,
    tasks_table,
)


def show_results(results: Mapping[str, Any], console: Console) -> None:
    """Prints the accuracies by task, the stored size of each method, and that of all tasks together."""
    methods, tasks, draws = (names(results["rows"], key) for key in ("method", "task", "draw"))
    console.print(_printed(run_title(results), tasks_table(results), last_apart=True))
    if results.get("rounds"):
        title = f"{results['method']} by round, means over the tasks"
        console.print(_printed(title, rounds_table(results["rounds"])))
    if len(methods) > 1:
        console.print(_printed("means over the tasks", methods_table(results)))
    if len(methods) > BESIDE:
        column = max(len("100.0% (0.0)" if len(draws) > 1 else "100.0%"), *map(len, tasks)) + 3
        fitting = max(1, (console.width - max(map(len, methods)) - 4) // column)
        for first in range(0, len(tasks), fitting):
            table = accuracies_table(results, tasks[first : first + fitting])
            console.print(_printed(f"{metric_of(results['rows'])} by task", table))
    console.print(*run_lines(results), sep="\n", highlight=False)


def _printed(title: str, table: html_page.Table, last_apart: bool = False) -> Table:
    (first, *columns), rows = table
    printed = Table(title=title, title_justify="left")
    printed.add_column(first, no_wrap=True)
    for column in columns:
        printed.add_column(column, justify="left" if column == TAKEN_FROM else "right", no_wrap=True)
    for number, row in enumerate(rows):
        if last_apart and number == len(rows) - 1:
            printed.add_section()
        printed.add_row(*row)
    return printed
