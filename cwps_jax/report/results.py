"""results.json: the results of a run, measured on the models that the pool really holds.

docs/results.md describes its format.
"""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn

from cwps_jax.data.task import TaskData
from cwps_jax.errors import CwpsError
from cwps_jax.files import write_atomically
from cwps_jax.parallel import Parallel
from cwps_jax.provenance import KEY, check_task, learned_with, same_program, versions
from cwps_jax.report.rounds import measure_rounds
from cwps_jax.report.rows import FORMAT, make_row, totals
from cwps_jax.settings import TrainConfig
from cwps_jax.store.index import compared_name
from cwps_jax.store.pool import Pool
from cwps_jax.train.evaluation import Predictor, measure, outputs_sha256
from cwps_jax.train.named_metrics import NAMED

BATCH_SIZE = TrainConfig().batch_size  # of a task whose version does not tell its own


def measure_pool(
    pool: Pool,
    method: str,
    load: Callable[[str], TaskData],
    make_model: Callable[[int], nn.Module],
    parallel: Parallel,
    *,
    tasks: Sequence[str] = (),
    dtype: str = "float32",
    draw: int = 0,
    rounds: int = 1,
    predictors: dict[Any, Predictor] | None = None,
) -> dict[str, Any]:
    """Returns the contents of results.json, with every task evaluated from the pool.

    Args:
        pool: freshly opened, so that nothing comes from the memory of the training run.
        method: by which the run learns its tasks.
        load: from a task's name to its data.
        make_model: from a number of classes to the plain model.
        parallel: how batches are spread over devices.
        tasks: whose data have to be there; another stored task without its data keeps its earlier numbers.
        dtype: that the model computes in.
        draw: number of the run among several draws.
        rounds: how often the run has gone through its tasks.
        predictors: compiled for pools of the same models that were measured before; new ones are added.
    """
    rows, forgetting, not_measured = [], [], []
    class_names: dict[str, Any] = {}
    predictors = {} if predictors is None else predictors
    for task in pool.tasks:
        recorded = pool.version(task).record
        class_names[task] = recorded.get(KEY, {}).get("class_names")
        data: TaskData | None = None
        try:
            data = load(task)
            check_task(task, recorded, data, learned_with(task, data, TrainConfig(), dtype))
        except CwpsError as error:
            if task in tasks:
                raise
            data = None
            not_measured.append({"task": task, "draw": draw, "why": str(error)})
        compared = recorded.get("compared", {})
        for name, other in ((task, ""), *((compared_name(task, other), other) for other in compared)):
            own = {"task": task, "method": other or pool.version(task).method, "draw": draw}
            if name not in pool:
                measured = compared[other]
                reached = {"accuracy": measured["accuracy_when_learned"], "stored": False}
                rows.append(make_row({**measured, **own, **reached}))
                continue
            record = pool.version(name).record
            if data is None:
                known = {**_stored(pool, name), **own, "accuracy": record["accuracy_when_learned"]}
                rows.append(make_row(known))
                continue
            kind = pool.method(name), data.classes
            if kind not in predictors:
                predictors[kind] = Predictor(pool.model(name, make_model(data.classes or 0)), parallel)
            told = record.get(KEY, {})
            # As it was measured then: other sizes of batches may round otherwise.
            batch_size = told.get("config", {}).get("batch_size", BATCH_SIZE)
            outputs = predictors[kind](pool.effective(name), data.test, batch_size)
            metric = record.get("metric")
            metric = metric if metric in NAMED else "accuracy"  # a function that was given in Python
            at_end = measure(NAMED[metric], outputs, data.test)
            rows.append(make_row({**_stored(pool, name), **own, "metric": metric, "accuracy": at_end}))
            forgetting.append(
                {
                    **own,
                    "accuracy_when_learned": record["accuracy_when_learned"],
                    "accuracy_at_end": at_end,
                    "logits_sha256_when_learned": record["logits_sha256_when_learned"],
                    "logits_sha256_at_end": outputs_sha256(outputs),
                    "same_program": same_program(told, parallel.mode) if told else True,
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
        "class_names": class_names,
        "not_measured": not_measured,
        "rounds": measure_rounds(pool, tasks, rounds, draw),
        "curves": [
            {"task": task, "draw": draw, **one}
            for task in pool.tasks
            for one in pool.version(task).record.get("curve", ())
        ],
    }


def _stored(pool: Pool, name: str) -> dict[str, Any]:
    """Returns what the pool says of a task's newest version, in the words of a row."""
    version, count = pool.version(name), pool.count(name)
    return {
        **version.record,  # seed, epochs, seconds, lambda and the like have a row's names there
        "stored": True,
        "version": version.version,
        "params_ratio": count.ratio,
        "byte_ratio": count.byte_ratio,
        "parameters": count.active + count.private,
        "head_parameters": count.head,
        "bits": count.bits,
        "bytes": version.bytes,
        "relation": None if version.compared or not pool.shares_channels(name) else pool.relation(name),
    }


def write_json(path: pathlib.Path, values: Mapping[str, Any]) -> None:
    """Writes JSON atomically: a reader sees the old file or the new one."""
    write_atomically(path, json.dumps(values, indent=1) + "\n")
