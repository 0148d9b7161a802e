"""results.json before format 2: one object per task, with a key for each compared method's accuracy."""

from collections.abc import Iterator, Mapping
from typing import Any

_SUFFIX = "_accuracy"


def methods(method: str, task: Mapping[str, Any]) -> dict[str, str]:
    """Returns {method: the key of its accuracy} of a task: the run's own method, then the compared ones."""
    measured = [key for key in task if key.endswith(_SUFFIX) and task[key] is not None]
    compared = {key.removesuffix(_SUFFIX): key for key in measured if key != "validation_accuracy"}
    return {method: "accuracy", **compared}


def rows(method: str, task: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the rows of a task's object; the row of a compared method has only its accuracy."""
    for name, key in methods(method, task).items():
        own = name == method
        # A compared method was trained by the same seed for as many epochs.
        row = {"task": task["name"], "seed": task["seed"], "epochs": task["epochs"]}
        if own:
            parameters = task["active_parameters"] + task["private_parameters"]
            row = {**task, **row, "parameters": parameters, "bits": 8 * task["bytes"]}
        yield {**row, "method": name, "draw": 0, "stored": own, "accuracy": task[key]}
