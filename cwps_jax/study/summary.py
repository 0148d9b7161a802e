"""From the results of cells to the numbers of a report: plain JSON, which page, pictures and tables show.

Cells that differ only in their seed are a group. Groups with the same tasks from the same data are a section,
in which their numbers can be compared.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.special import stdtrit

from cwps_jax import methods
from cwps_jax.report.rows import Rows, Spread, backward_transfers, changed, forgotten, spread, stored_bytes
from cwps_jax.settings.data import AUGMENTATION, DataConfig
from cwps_jax.study.cells import Finished
from cwps_jax.study.grid import Study

FORMAT = 1
CONFIDENCE = 0.95
# What a group's means are over its tasks; the last four are what accuracy costs, see the pictures.
KEYS = ("accuracy", "validation_accuracy", "params_ratio", "trained", "flops_per_step")
COSTS = ("bytes", "parameters", "peak_memory_bytes", "seconds")
# Augmentation is a setting of learning: groups with and without it learn the same tasks.
_DATA_KEYS = {field.name for field in dataclasses.fields(DataConfig)} - {*AUGMENTATION}


def summarise(study: Study, finished: Sequence[Finished]) -> dict[str, Any]:
    """Returns the report of a study's finished cells: plain JSON, see docs/studies.md.

    Args:
        study: the study.
        finished: cells with their results, of one version and one set of data.
    """
    problems: dict[Any, list[Finished]] = {}
    for cell, values in finished:
        problems.setdefault(_problem(cell.values, cell.config.tasks), []).append((cell, values))
    alone = {
        (_like(cell.values, {"tasks": None}), cell.config.tasks[0]): _accuracies(values)[cell.config.tasks[0]]
        for cell, values in finished
        if len(cell.config.tasks) == 1
    }
    sections = [_section(study, cells, alone) for cells in problems.values()]
    first = finished[0][1]["results"] if finished else {}
    return {
        "format": FORMAT,
        "title": study.title,
        "cells": {"finished": len(finished), "asked": len(study.cells)},
        "seconds": sum(values["seconds"] for _, values in finished),
        "versions": first.get("versions", {}),
        "baseline": dict(study.baseline),
        "sections": sorted(sections, key=lambda section: -len(section["tasks"])),
    }


def paired_difference(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Returns the mean of one less the other over pairs, and its interval by Student's t.

    Args:
        pairs: (one, other) of each seed that both have.

    Returns:
        "mean", "low", "high" and "pairs"; no interval, None, for fewer than two pairs.
    """
    differences = [one - other for one, other in pairs]
    count = len(differences)
    if not count:
        return {"mean": None, "low": None, "high": None, "pairs": 0}
    mean = statistics.mean(differences)
    if count == 1:
        return {"mean": mean, "low": None, "high": None, "pairs": 1}
    quantile = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2))
    half = quantile * statistics.stdev(differences) / count**0.5
    return {"mean": mean, "low": mean - half, "high": mean + half, "pairs": count}


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Returns the points of (cost, worth) that no other beats by less cost or more worth."""
    return [
        not any(
            other_cost <= cost and other_worth >= worth and (other_cost, other_worth) != (cost, worth)
            for other_cost, other_worth in points
        )
        for cost, worth in points
    ]


def _section(study: Study, cells: Sequence[Finished], alone: Mapping[Any, float]) -> dict[str, Any]:
    seeds_apart: dict[Any, list[Finished]] = {}
    for cell, values in cells:
        seeds_apart.setdefault(_like(cell.values, {"seed": None}), []).append((cell, values))
    swept = [key for key in study.swept if key != "seed"]
    shown = [key for key in swept if len({repr(cell.values[key]) for cell, _ in cells}) > 1]
    constant = {key: cells[0][0].values[key] for key in swept if key not in (*shown, "tasks")}
    groups = []
    for own in seeds_apart.values():
        method = own[0][0].config.method
        same = [cell for cell, _ in cells if cell.config.method == method]
        told = [key for key in shown if key == "method" or len({repr(one.values[key]) for one in same}) > 1]
        group = _group(own, shown, told, alone)
        if study.baseline:
            other = seeds_apart.get(_baseline_of(own[0][0].values, study.baseline))
            group["is_baseline"] = other is own
            group["difference"] = None if other is None or other is own else _difference(own, other)
        groups.append(group)
    _mark(groups)
    tasks = sorted(cells[0][0].config.tasks)
    fixed = [_told(key, value) for key, value in constant.items() if value is not None]
    backbones = {
        values["results"]["backbone"]: values["results"]["backbone_parameters"] for _, values in cells
    }
    return {
        "title": "; ".join([", ".join(tasks), *fixed]),
        "tasks": tasks,
        "constant": constant,
        "backbone": ", ".join(backbones),
        "backbone_parameters": list(backbones.values()),
        "groups": groups,
    }


def _group(
    cells: Sequence[Finished], shown: Sequence[str], told: Sequence[str], alone: Mapping[Any, float]
) -> dict[str, Any]:
    """Returns a group's numbers.

    Args:
        cells: its cells, one for each seed.
        shown: keys in which the groups of its section differ.
        told: those of them in which it differs from other groups of its method.
        alone: {(cell without its tasks, task): accuracy} of tasks that were learned alone.
    """
    first, results = cells[0][0], cells[0][1]["results"]
    rows = [
        {
            **row,
            "method": "group",
            "draw": cell.config.seed,
            "seconds": values["epochs_seconds"][row["task"]],
        }
        for cell, values in cells
        for row in values["results"]["rows"]
    ]
    values = {key: first.values[key] for key in shown}
    means = {key: _plain(spread(rows, "group", key)) for key in (*KEYS, *COSTS)}
    # A stage of one epoch has compiled in it what no cell before had: that would move a mean.
    means["seconds"] = {"mean": statistics.median(row["seconds"] for row in rows), "deviation": None}
    size = means["bytes"]["mean"] if means["bytes"] else None
    return {
        "label": ", ".join(_told(key, values[key]) for key in told) or first.config.method,
        "values": values,
        "method": first.config.method,
        "seeds": [cell.config.seed for cell, _ in cells],
        **means,
        "bytes_ratio": size and size / (4 * results["backbone_parameters"]),
        "tasks": {task: _plain(spread(rows, "group", "accuracy", task)) for task in first.config.tasks},
        "continual": _continual(cells, alone),
        "total_bytes": _total_bytes(cells),
        "is_baseline": False,
        "difference": None,
    }


def _continual(cells: Sequence[Finished], alone: Mapping[Any, float]) -> dict[str, Any]:
    """Returns the transfer between tasks: means over tasks and seeds, None if no cell has them.

    Forward transfer: a task's accuracy less that of the same method and seed which learned it alone, from the
    second task on. Backward transfer: the accuracy at the end less that when learned. Forgetting: the loss of
    accuracy, and the number of tasks whose outputs changed in any bit.
    """
    forward, backward, bits = [], [], 0
    for cell, values in cells:
        reached = _accuracies(values)
        key = _like(cell.values, {"tasks": None})
        for task in cell.config.tasks[1:]:
            if (key, task) in alone:
                forward.append(reached[task] - alone[key, task])
        backward += backward_transfers(values["results"])
        bits += changed(values["results"])
    return {
        "forward_transfer": statistics.mean(forward) if forward else None,
        "forward_pairs": len(forward),
        "backward_transfer": statistics.mean(backward) if backward else None,
        "forgetting": forgotten(backward),
        "changed_tasks": bits,
    }


def _total_bytes(cells: Sequence[Finished]) -> list[float] | None:
    """Returns all stored bytes after 0, 1, 2, ... tasks, the pre-trained backbone in float32 included."""
    curves = [stored_bytes(values["results"]).get(cell.config.method) for cell, values in cells]
    known = [curve for curve in curves if curve]
    if len(known) < len(curves):
        return None
    return [statistics.mean(one) for one in zip(*known, strict=True)]


def _mark(groups: Sequence[dict[str, Any]]) -> None:
    """Marks the best group, and those on the front of each cost, only by validation accuracy."""
    for group in groups:
        group["best"] = False
        group["front"] = dict.fromkeys(COSTS, False)
    known = [group for group in groups if group["validation_accuracy"]]
    if known:
        max(known, key=_worth)["best"] = True
    for cost in COSTS:
        priced = [group for group in known if group[cost]]
        kept = front([(group[cost]["mean"], _worth(group)) for group in priced])
        for group, on_front in zip(priced, kept, strict=True):
            group["front"][cost] = on_front


def _baseline_of(values: Mapping[str, Any], baseline: Mapping[str, Any]) -> str:
    wanted = {**values, **baseline}
    theirs = methods.METHODS.keys() - {wanted.get("method", "")} if "method" in wanted else set()
    return _like(wanted, {"seed": None, **{key: None for key in wanted if key.split(".")[0] in theirs}})


def _difference(own: Sequence[Finished], other: Sequence[Finished]) -> dict[str, Any]:
    ours, theirs = (
        {cell.config.seed: statistics.mean(_accuracies(values).values()) for cell, values in cells}
        for cells in (own, other)
    )
    return paired_difference([(ours[seed], theirs[seed]) for seed in ours if seed in theirs])


def _worth(group: Mapping[str, Any]) -> float:
    return group["validation_accuracy"]["mean"]


def _accuracies(values: Mapping[str, Any]) -> dict[str, float]:
    rows: Rows = values["results"]["rows"]
    return {row["task"]: row["accuracy"] for row in rows}


def _problem(values: Mapping[str, Any], tasks: Sequence[str]) -> tuple[Any, ...]:
    given = {key: value for key, value in values.items() if key in _DATA_KEYS}
    if given.get("crop") != "stretch":
        given.pop("crop", None)
    return tuple(sorted(tasks)), repr(given)


def _like(values: Mapping[str, Any], changes: Mapping[str, Any]) -> str:
    """Returns the values that two cells share if they are equal except for the changes."""
    changed_keys = {key: value for key, value in changes.items() if key in values}
    return repr({**values, **changed_keys})


def _plain(value: Spread | None) -> dict[str, Any] | None:
    return None if value is None else dataclasses.asdict(value)


def _told(key: str, value: Any) -> str:
    if key == "tasks":  # in their order
        return " > ".join(value)
    return str(value) if key == "method" else f"{key} {value}"
