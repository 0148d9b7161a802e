"""A cell's result file: written once, read with all checks, compared with the present cell."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from cwps_jax.data.task import TaskData
from cwps_jax.errors import CwpsError
from cwps_jax.provenance import differences, plain, versions
from cwps_jax.report.results import write_json
from cwps_jax.report.rows import ROW
from cwps_jax.study.grid import Cell

FORMAT = 1
KEYS = ("format", "name", "config", "data", "seconds", "epochs_seconds", "results")
# Where things lie and how they are read: numbers do not depend on it, and hashes tell what was read.
ELSEWHERE = (
    *("data_dir", "weights", "compilation_cache", "profile", "metrics"),
    *("cache", "cache_gigabytes", "cache_dir", "reader_threads", "prefetch"),
)

Finished = tuple[Cell, dict[str, Any]]


def cell_path(workdir: pathlib.Path, cell: Cell) -> pathlib.Path:
    """Returns the path of a cell's result."""
    return workdir / "cells" / f"{cell.name}.json"


def fingerprints(data: TaskData) -> dict[str, str]:
    """Returns the SHA-256 of each split."""
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    return {name: split.fingerprint for name, split in splits.items()}


def write_cell(
    path: pathlib.Path,
    cell: Cell,
    *,
    data: Mapping[str, Any],
    seconds: float,
    epochs_seconds: Mapping[str, float],
    results: Mapping[str, Any],
) -> None:
    """Writes a cell's result, all of it or nothing.

    Args:
        path: path of the file; its folder is made.
        cell: the cell that was run.
        data: {task: see `fingerprints`}.
        seconds: seconds of all of it, with compiling, loading and measuring.
        epochs_seconds: {task: seconds of its epochs}, each counted as the median of its stage without the
            first one. Compilation is included only for stages of one epoch.
        results: see `measure_pool`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    values = (FORMAT, cell.name, plain_config(cell), data, seconds, epochs_seconds, results)
    write_json(path, dict(zip(KEYS, values, strict=True)))


def read_cell(path: pathlib.Path) -> dict[str, Any]:
    """Returns the contents of a cell's file.

    Raises:
        CwpsError: it has another format, or a key is missing.
    """
    again = "remove it, and the study computes it again"
    try:
        values = json.loads(path.read_text())
        if values["format"] != FORMAT:
            raise CwpsError(
                f"{path}: a cell of format {values['format']!r}; format {FORMAT} is read: {again}"
            )
        for key in KEYS:
            values[key]
        for row in values["results"]["rows"]:
            for key in ROW:
                row[key]
        return values
    except KeyError as error:
        raise CwpsError(f"{path}: no {error} in it; {again}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, TypeError) as error:
        raise CwpsError(f"{path}: not the result of a cell; {again}") from error


def finished_cells(workdir: pathlib.Path, cells: Sequence[Cell]) -> list[Finished]:
    """Returns the study's cells that have a result, with it.

    Raises:
        CwpsError: a result has another format or config, or two disagree on versions or data.
    """
    found = [(cell, read_cell(path)) for cell in cells if (path := cell_path(workdir, cell)).exists()]
    for cell, values in found:
        wrong = differences(_compared(values["config"]), _compared(plain_config(cell)))
        if wrong:
            raise CwpsError(
                f"{cell_path(workdir, cell)}: computed with another config: {wrong}; use another --workdir, "
                "the earlier config, or remove the file to compute it again"
            )
    _check_agreement(workdir, found)
    return found


def check_now(workdir: pathlib.Path, cell: Cell, values: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Raises CwpsError if a finished cell has other versions or data than it would have now.

    Args:
        workdir: the study's.
        cell, values: the cell, and its file.
        data: {task: see `fingerprints`} as they are now.
    """
    wrong = differences(values["results"]["versions"], versions())
    for task, own in data.items():
        for split, now in own.items():
            if values["data"][task][split] != now:
                wrong = wrong or f"the {split} data of {task!r} have other contents"
    if wrong:
        raise CwpsError(
            f"{cell_path(workdir, cell)}: computed with other versions or data: {wrong}; use "
            "another --workdir, or remove the file to compute it again"
        )


def plain_config(cell: Cell) -> dict[str, Any]:
    """Returns a cell's config as plain JSON."""
    return json.loads(json.dumps(plain(cell.config)))


def _compared(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in ELSEWHERE}


def _check_agreement(workdir: pathlib.Path, found: Sequence[Finished]) -> None:
    """Raises CwpsError for the first two cells that were not computed with the same versions and data."""
    known: dict[Any, tuple[Cell, str]] = {}
    for cell, values in found:
        wrong = differences(found[0][1]["results"]["versions"], values["results"]["versions"])
        if wrong:
            raise _disagreement(workdir, found[0][0], cell, f"versions: {wrong}")
        for task in cell.config.tasks:
            run = cell.config.for_task(task)
            images = {k: v for k, v in dataclasses.asdict(run.images).items() if k not in ELSEWHERE}
            for split, fingerprint in values["data"][task].items():
                # All seeds and numbers of images share a test set.
                same = {**images, "shots": 0} if split == "test" else {**images, "seed": run.seed}
                key = (task, split, run.backbone if not run.image_size else "", repr(same))
                other, before = known.setdefault(key, (cell, fingerprint))
                if before != fingerprint:
                    raise _disagreement(workdir, other, cell, f"the {split} data of {task!r}")


def _disagreement(workdir: pathlib.Path, one: Cell, other: Cell, what: str) -> CwpsError:
    return CwpsError(
        f"{workdir}: {cell_path(workdir, one).name} and {cell_path(workdir, other).name} disagree on {what}; "
        "remove the one that is wrong, and run the study again"
    )
