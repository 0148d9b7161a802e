"""A pool as a small table of text."""

import pathlib
from collections.abc import Sequence

from cwps_jax.store.index import Index, Version

SHOWN = 20
TITLES = ("task", "version", "method", "kept", "bytes", "accuracy")


def listed(folder: pathlib.Path, index: Index, versions: Sequence[Version]) -> str:
    """Returns a table of the newest of some versions, with what the index knows of them.

    Args:
        folder: the pool's.
        index: what it holds.
        versions: oldest first.
    """
    rows = [TITLES, *map(_row, versions[-SHOWN:])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = (str.ljust, str.rjust, str.ljust, str.rjust, str.rjust, str.rjust)
    lines = (
        "  ".join(align(cell, width) for align, cell, width in zip(aligned, row, widths, strict=True))
        for row in rows
    )
    kind = f" of {index.backbone}" if index.backbone else ""
    older = f", of which the newest {SHOWN}" if len(versions) > SHOWN else ""
    head = f"Pool {folder}{kind}: {len(versions)} task{'' if len(versions) == 1 else 's'}{older}"
    return "\n".join([head, *(line.rstrip() for line in lines)] if versions else [head])


def _row(version: Version) -> tuple[str, ...]:
    accuracy = version.record.get("accuracy_when_learned")
    return (
        version.task,
        str(version.version),
        version.method,
        "" if version.ratio is None else f"{version.ratio:.1%}",
        f"{version.bytes:,}",
        f"{accuracy:.3f}" if isinstance(accuracy, int | float) else "",
    )
