"""The rows of results.json: read, checked and averaged. docs/results.md describes them."""

import dataclasses
import itertools
import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cwps_jax.errors import CwpsError
from cwps_jax.report import format_1

FORMAT = 2
KEYS = (
    *("format", "method", "backbone", "backbone_parameters", "pretrained", "versions"),
    *("rows", "totals", "forgetting"),
)
# What files of format 2 may lack, and their rows.
ADDED: dict[str, Any] = {"class_names": {}, "not_measured": [], "rounds": [], "curves": []}
ADDED_TO_ROWS = ("byte_ratio", "row_bits", "metric")
ROW = (
    *("task", "method", "draw", "seed", "stored", "version"),
    *("metric", "accuracy", "validation_accuracy", "params_ratio", "parameters", "head_parameters"),
    *(
        "bits",
        "bytes",
        "byte_ratio",
        "row_bits",
        "trained",
        "peak_memory_bytes",
        "flops_per_step",
        "seconds",
        "epochs",
    ),
    *("lambda", "budget", "relation"),
)

Rows = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Spread:
    """A mean, and its sample deviation over draws: None for a single one."""

    mean: float
    deviation: float | None = None


def make_row(known: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row of the known values; the other keys are None, and keys that no row has are left out."""
    return {key: known.get(key) for key in ROW}


def totals(rows: Rows) -> list[dict[str, Any]]:
    """Returns the sums over all tasks, for each method and draw; None if a row has no value."""
    found = []
    for method, draw in dict.fromkeys((row["method"], row["draw"]) for row in rows):
        own = [row for row in rows if (row["method"], row["draw"]) == (method, draw)]
        ratios, sizes = ([row[key] for row in own] for key in ("params_ratio", "bytes"))
        ratio = None if None in ratios else 1 + sum(ratios)  # the pre-trained model counts 1
        size = None if None in sizes else sum(sizes)
        found.append({"method": method, "draw": draw, "params_ratio": ratio, "bytes": size})
    return found


def names(rows: Rows, key: str) -> list[Any]:
    """Returns the methods, tasks or draws of the rows, each once, in the rows' order."""
    return list(dict.fromkeys(row[key] for row in rows))


def metric_of(rows: Rows) -> str:
    """Returns the name of the metric in the rows' `accuracy`; several names if the tasks have several."""
    return " or ".join(dict.fromkeys(row["metric"] or "accuracy" for row in rows))


def spread(rows: Rows, method: str, key: str, task: str | None = None) -> Spread | None:
    """Returns the mean of a method's values over the draws, for one task or averaged over all of them.

    None if a draw or a task has no value, because means over different tasks cannot be compared.
    """
    tasks = names(rows, "task") if task is None else [task]
    values = {(row["draw"], row["task"]): row[key] for row in rows if row["method"] == method}
    means = []
    for draw in names(rows, "draw"):
        known = [value for name in tasks if (value := values.get((draw, name))) is not None]
        means.append(statistics.mean(known) if len(known) == len(tasks) else None)
    return _over_draws(means)


def total(results: Mapping[str, Any], method: str) -> Spread | None:
    """Returns the mean over the draws of the sum of a method's tasks and the pre-trained model."""
    return _over_draws([one["params_ratio"] for one in results["totals"] if one["method"] == method])


def changed(results: Mapping[str, Any]) -> int:
    """Returns the number of stored models whose test logits changed in any bit after they were learned."""
    return sum(
        one["logits_sha256_when_learned"] != one["logits_sha256_at_end"] for one in comparable(results)
    )


def backward_transfers(results: Mapping[str, Any]) -> list[float]:
    """Returns the accuracy at the end minus that when learned, for each measured stored model."""
    return [one["accuracy_at_end"] - one["accuracy_when_learned"] for one in results["forgetting"]]


def forgotten(backward: Sequence[float]) -> float | None:
    """Returns the mean loss of accuracy since learning; None if nothing was measured."""
    return statistics.mean(max(0.0, -one) for one in backward) if backward else None


def stored_bytes(results: Mapping[str, Any]) -> dict[str, list[float]]:
    """Returns all bytes that each method has stored after 0, 1, 2, ... tasks, mean over the draws.

    The pre-trained backbone in float32 is included, and after the last task the older versions whose rows are
    borrowed. A method that lacks a task or its bytes has none.
    """
    rows, found = results["rows"], {}
    for method in names(rows, "method"):
        sizes = [spread(rows, method, "bytes", task) for task in names(rows, "task")]
        known = [size.mean for size in sizes if size]
        if len(known) == len(sizes):
            found[method] = [*itertools.accumulate(known, initial=4.0 * results["backbone_parameters"])]
            if method == results["method"]:  # the others are learned in the first round alone
                found[method][-1] += older_bytes(results)
    return found


def older_bytes(results: Mapping[str, Any]) -> float:
    """Returns the bytes of older versions whose rows the newest ones borrow, mean over the draws."""
    rounds = results.get("rounds", ())  # which files of format 2 may lack
    last = [one["older_bytes"] for one in rounds if one["round"] == rounds[-1]["round"]]
    return sum(last) / len(names(rounds, "draw")) if last else 0.0


def comparable(results: Mapping[str, Any]) -> Rows:
    """Returns the entries of "forgetting" whose logits were computed by one program, then and at the end."""
    return [one for one in results["forgetting"] if one.get("same_program", True)]


def read_results(path: pathlib.Path) -> dict[str, Any]:
    """Returns the contents of a results.json in format 2; one run's file of format 1 is converted.

    Raises:
        CwpsError: it has another format, or a key is missing.
    """
    try:
        values = json.loads(path.read_text())
        if values["format"] == 1 and "draws" in values:
            raise CwpsError(
                f"{path}: format 1 has no rows of several draws; read each draw's own results.json"
            )
        if values["format"] == 1:
            values = _from_format_1(values)
        if values["format"] != FORMAT:
            raise CwpsError(
                f"{path}: results of format {values['format']!r}; formats {FORMAT} and 1 are read"
            )
        values = ADDED | {key: values[key] for key in (*KEYS, *(ADDED.keys() & values.keys()))}
        lacking = dict.fromkeys(ADDED_TO_ROWS)
        return values | {"rows": [{key: (lacking | row)[key] for key in ROW} for row in values["rows"]]}
    except FileNotFoundError as error:
        raise CwpsError(f"{path}: no such file") from error
    except KeyError as error:
        raise CwpsError(f"{path}: no {error} in it; main --finish writes results.json again") from error
    except (UnicodeDecodeError, json.JSONDecodeError, TypeError) as error:
        raise CwpsError(f"{path}: not a results.json") from error


def _from_format_1(old: Mapping[str, Any]) -> dict[str, Any]:
    rows = [make_row(one) for task in old["tasks"] for one in format_1.rows(old["method"], task)]
    forgetting = [{**one, "method": old["method"], "draw": 0} for one in old["forgetting"]]
    return {**old, "format": FORMAT, "rows": rows, "totals": totals(rows), "forgetting": forgetting}


def _over_draws(means: Sequence[float | None]) -> Spread | None:
    known = [mean for mean in means if mean is not None]
    if len(known) < max(1, len(means)):
        return None
    return Spread(statistics.mean(known), statistics.stdev(known) if len(known) > 1 else None)
