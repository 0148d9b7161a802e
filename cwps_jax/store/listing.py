"""A pool as a small table, in text or in HTML."""

import html
import pathlib
from collections.abc import Sequence

from cwps_jax.store.index import Index, Version

SHOWN = 20
TITLES = ("task", "version", "method", "kept", "bytes", "accuracy")


def listed(folder: pathlib.Path, index: Index, tasks: Sequence[str]) -> str:
    """Returns a table of the newest of some tasks, from the index.

    Args:
        folder: the pool's.
        index: the pool's index.
        tasks: their names, oldest first.
    """
    rows = [TITLES, *_rows(index, tasks)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = (str.ljust, str.rjust, str.ljust, str.rjust, str.rjust, str.rjust)
    lines = (
        "  ".join(align(cell, width) for align, cell, width in zip(aligned, row, widths, strict=True))
        for row in rows
    )
    head = _head(folder, index, tasks)
    return "\n".join([head, *(line.rstrip() for line in lines)] if tasks else [head])


def listed_html(folder: pathlib.Path, index: Index, tasks: Sequence[str]) -> str:
    """Returns the same table as HTML, for a notebook; see `listed` for the arguments."""
    return html_table(_head(folder, index, tasks), TITLES, _rows(index, tasks))


def html_table(caption: str, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table as HTML in which every text is escaped.

    Args:
        caption: a line above the table.
        titles: titles of the columns.
        rows: a text for each column.
    """

    def line(kind: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in cells) + "</tr>"

    body = "".join(line("td", row) for row in rows)
    header = f"<thead>{line('th', titles)}</thead><tbody>{body}</tbody>" if rows else ""
    return f"<table><caption>{html.escape(caption)}</caption>{header}</table>"


def _head(folder: pathlib.Path, index: Index, tasks: Sequence[str]) -> str:
    kind = f" of {index.backbone}" if index.backbone else ""
    older = f", of which the newest {SHOWN}" if len(tasks) > SHOWN else ""
    return f"Pool {folder}{kind}: {len(tasks)} task{'' if len(tasks) == 1 else 's'}{older}"


def _rows(index: Index, tasks: Sequence[str]) -> list[tuple[str, ...]]:
    return [_row(index.by_name[task]) for task in tasks[-SHOWN:]]


def _row(version: Version) -> tuple[str, ...]:
    accuracy, metric = version.record.get("accuracy_when_learned"), version.record.get("metric", "accuracy")
    named = "" if metric == "accuracy" else f" {metric}"
    return (
        version.task,
        str(version.version),
        version.method,
        "" if version.ratio is None else f"{version.ratio:.1%}",
        f"{version.bytes:,}",
        f"{accuracy:.3f}{named}" if isinstance(accuracy, int | float) else "",
    )
