"""Several independent runs of one config: where each is, and means and deviations over them."""

import dataclasses
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cwps_jax.config import RunConfig

MEASURED = ("accuracy", "validation_accuracy", "finetune_accuracy", "probe_accuracy", "params_ratio")


def draw_folders(config: RunConfig, workdir: pathlib.Path) -> list[tuple[RunConfig, pathlib.Path]]:
    """Returns each draw's config, with a seed of its own, and its folder; the workdir itself for one draw."""
    if config.draws == 1:
        return [(config, workdir)]
    return [
        (dataclasses.replace(config, seed=config.seed + draw, draws=1), workdir / f"draw{draw}")
        for draw in range(config.draws)
    ]


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the contents of results.json over several draws; docs/results.md is the contract.

    Args:
        results: the contents of each draw's results.json.
    """
    first = results[0]
    by_task = [[_task(one, task["name"]) for one in results] for task in first["tasks"]]
    return {
        **{key: first[key] for key in ("format", "method", "backbone", "backbone_parameters")},
        "draws": [
            {
                "folder": f"draw{draw}",
                "seed": one["tasks"][0]["seed"],
                "total_params_ratio": one["total_params_ratio"],
            }
            for draw, one in enumerate(results)
        ],
        "tasks": [
            {"name": draws[0]["name"], **{key: _spread([one[key] for one in draws]) for key in MEASURED}}
            for draws in by_task
        ],
        "mean": {
            key: _spread([_mean([task[key] for task in one["tasks"]]) for one in results]) for key in MEASURED
        },
        "versions": first["versions"],
    }


def _task(results: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return next(task for task in results["tasks"] if task["name"] == name)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if len(known) == len(values) else None


def _spread(values: Sequence[float | None]) -> dict[str, float] | None:
    """Returns mean and sample deviation; None where something was not measured."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return {"mean": statistics.mean(known), "deviation": statistics.stdev(known)}
