"""results.json: what a run reached, measured on what the pool really holds.

docs/results.md is the contract.
"""

import importlib.metadata
import json
import pathlib
import platform
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from cwps_jax.data.task import TaskData
from cwps_jax.files import write_atomically
from cwps_jax.learn import check_classes, outputs_sha256
from cwps_jax.parallel import Parallel
from cwps_jax.report.rows import FORMAT, make_row, totals
from cwps_jax.store.index import compared_name
from cwps_jax.store.pool import Pool
from cwps_jax.train.evaluation import Predictor, measure
from cwps_jax.train.objectives import accuracy
from cwps_jax.version import __version__


def measure_pool(
    pool: Pool,
    method: str,
    load: Callable[[str], TaskData],
    make_model: Callable[[int], nn.Module],
    parallel: Parallel,
    batch_size: int,
    draw: int = 0,
) -> dict[str, Any]:
    """Returns the contents of results.json, with every task evaluated from the pool.

    Args:
        pool: freshly opened, so that nothing comes from the memory of the training run.
        method: by which the run learns its tasks.
        load: from a task's name to its data.
        make_model: from a number of classes to the plain model.
        parallel: how batches are spread over devices.
        batch_size: images a batch.
        draw: number of the run among several draws.
    """
    rows, forgetting = [], []
    predictors: dict[Any, Predictor] = {}
    for task in pool.tasks:
        data = load(task)
        check_classes(pool, task, data)
        compared = pool.version(task).record.get("compared", {})
        for name, other in ((task, ""), *((compared_name(task, other), other) for other in compared)):
            own = {"task": task, "method": other or pool.version(task).method, "draw": draw}
            if name not in pool:
                measured = compared[other]
                reached = {"accuracy": measured["accuracy_when_learned"], "stored": False}
                rows.append(make_row({**measured, **own, **reached}))
                continue
            kind = pool.method(name), data.classes
            if kind not in predictors:
                predictors[kind] = Predictor(pool.model(name, make_model(data.classes or 0)), parallel)
            outputs = predictors[kind](pool.effective(name), data.test, batch_size)
            at_end, record = measure(accuracy, outputs, data.test), pool.version(name).record
            rows.append(make_row({**_stored(pool, name), **own, "accuracy": at_end}))
            forgetting.append(
                {
                    **own,
                    "accuracy_when_learned": record["accuracy_when_learned"],
                    "accuracy_at_end": at_end,
                    "logits_sha256_when_learned": record["logits_sha256_when_learned"],
                    "logits_sha256_at_end": outputs_sha256(outputs),
                }
            )
    return {
        "format": FORMAT,
        "method": method,
        "backbone": pool.index.backbone,
        "backbone_parameters": pool.layout.backbone_parameters,
        "pretrained": dict(pool.index.pretrained_record),
        "versions": versions(),
        "rows": rows,
        "totals": totals(rows),
        "forgetting": forgetting,
    }


def _stored(pool: Pool, name: str) -> dict[str, Any]:
    """Returns what the pool says of a task's newest version, in the words of a row."""
    version, count = pool.version(name), pool.count(name)
    return {
        **version.record,  # seed, epochs, seconds, lambda and the like have a row's names there
        "stored": True,
        "version": version.version,
        "params_ratio": count.ratio,
        "parameters": count.active + count.private,
        "head_parameters": count.head,
        "bits": count.bits,
        "bytes": version.bytes,
        "relation": None if version.compared or not pool.shares_channels(name) else pool.relation(name),
    }


def versions() -> dict[str, str]:
    """Returns the versions of everything that the numbers depend on, and the device."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "cwps_jax": __version__,
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def write_json(path: pathlib.Path, values: Mapping[str, Any]) -> None:
    """Writes JSON atomically: a reader sees the old file or the new one."""
    write_atomically(path, json.dumps(values, indent=1) + "\n")
