"""Looks through every image of a run before it starts: ``python -m cwps_jax.data configs/pacs.py``.

Prints a row for each split of each task, a line for each finding, and "ok" or the number of problems. Data
without a problem are prepared as the run will do it, so that wrong weights or settings are found too. Exit
status: 0 where the run can start, 1 where it cannot, 2 for a wrong config.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence

from absl import flags
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from cwps_jax import command_line, data
from cwps_jax.config import RunConfig
from cwps_jax.data.check import Finding, SplitReport, TaskReport, check_task
from cwps_jax.errors import CwpsError
from cwps_jax.prepare import prepare
from cwps_jax.pretraining import load_weights

_JSON = flags.DEFINE_string("json", None, "File that gets all that was found, too.")


def main(config: RunConfig) -> int:
    """Checks the data of all tasks, and returns the exit status."""
    file = pathlib.Path(_JSON.value) if _JSON.value else None
    if file and not file.parent.is_dir():
        raise CwpsError(f"--json={file}: no such folder: {file.parent}")
    reports = check(config)
    stops = [finding.stops for report in reports for finding in report.findings]
    counts = {"problems": stops.count(True), "warnings": stops.count(False)}
    # A log file has no width of its own: keep the table whole there.
    show(reports, counts, Console(width=None if sys.stdout.isatty() else 160))
    if file:
        tasks = [dataclasses.asdict(report) for report in reports]
        file.write_text(json.dumps({"format": 1, **counts, "tasks": tasks}, indent=1) + "\n")
    return int(counts["problems"] > 0)


def check(config: RunConfig) -> list[TaskReport]:
    """Returns what is found in the data of all tasks, those for pre-training first; shows how far it is.

    Where nothing stops the data, the run itself is prepared up to its first step, as the run will do it.
    """
    tasks = config.tasks if config.weights else (config.source, *config.tasks)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    terminal = Console(stderr=True)
    reports: list[TaskReport] = []
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as progress:
        for task in tasks:
            rows: dict[str, TaskID] = {}

            def observe(
                split: str, count: int, total: int, task: str = task, rows: dict[str, TaskID] = rows
            ) -> None:
                if split not in rows:
                    rows[split] = progress.add_task(escape(f"{task}: {split}"), total=total)
                progress.advance(rows[split], count)

            own = config.for_task(task)
            opener = data.opener(own.images)
            reports.append(check_task(own.images, task, opener, batch_size=own.batch_size, observe=observe))
    if not any(finding.stops for report in reports for finding in report.findings):
        reports += _prepared(config)
    return reports


def _prepared(config: RunConfig) -> list[TaskReport]:
    """Returns what stops the run before its first step, beside the data."""
    try:
        prepared = prepare(config, None, None)
        if config.weights:
            load_weights(config, prepared.trainer)
    except CwpsError as error:
        return [TaskReport("the run", (), (Finding("cannot start", True, str(error)),))]
    return []


def show(reports: Sequence[TaskReport], counts: dict[str, int], console: Console) -> None:
    """Prints a row for each split, a line for each finding, and what they come to."""
    table = Table("task", "split")
    for column in ("images", "classes", "smallest class", "largest class", "unreadable"):
        table.add_column(column, justify="right")
    for report in reports:
        for split in report.splits:
            table.add_row(escape(report.task), *map(escape, _cells(split)))
    if table.rows:
        console.print(table)
    lines = [
        f"{'problem' if finding.stops else 'warning'}: {report.task}: {finding.line()}"
        for report in reports
        for finding in report.findings
    ]
    totals = [f"{count} {name if count != 1 else name[:-1]}" for name, count in counts.items() if count]
    verdict = ", ".join([*([] if counts["problems"] else ["ok"]), *totals])
    console.print("\n".join([*lines, verdict]), markup=False, highlight=False, soft_wrap=True)


def _cells(split: SplitReport) -> list[str]:
    smallest, largest = (f"{count:,} ({name})" for name, count in (split.smallest, split.largest))
    return [
        split.role if split.role == split.split else f"{split.role} (of {split.split})",
        f"{split.images:,}",
        f"{split.classes:,} of {split.all_classes:,}",
        smallest,
        largest,
        f"{split.unreadable:,}",
    ]


if __name__ == "__main__":
    command_line.run(main)
