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

from cwps_jax.core import accounting
from cwps_jax.data.task import TaskData
from cwps_jax.files import write_atomically
from cwps_jax.learn import check_classes, outputs_sha256
from cwps_jax.parallel import Compiled, Parallel
from cwps_jax.store.pool import Pool
from cwps_jax.train.evaluation import Predictor, measure
from cwps_jax.train.objectives import accuracy
from cwps_jax.version import __version__

FORMAT = 1

# What was measured when the task was learned, and stands in the pool's index.
RECORDED = ("lambda", "budget", "epochs", "seconds", "peak_memory_bytes", "flops_per_step", "seed")


def measure_pool(
    pool: Pool,
    method: str,
    load: Callable[[str], TaskData],
    make_model: Callable[[int], nn.Module],
    parallel: Parallel,
    batch_size: int,
) -> dict[str, Any]:
    """Returns the contents of results.json, with every task evaluated from the pool.

    Args:
        pool: freshly opened, so that nothing comes from the memory of the training run.
        method: by which the tasks were learned.
        load: from a task's name to its data.
        make_model: from a number of classes to the plain model.
        parallel: how batches are spread over devices.
        batch_size: images a batch.
    """
    tasks, forgetting = [], []
    predictors: dict[int, Predictor] = {}
    programs: dict[str, Compiled] = {}
    for name in pool.tasks:
        data = load(name)
        check_classes(pool, name, data)
        classes = data.classes or 0
        if classes not in predictors:
            head = pool.layout.head_paths
            predictors[classes] = Predictor(make_model(classes), parallel, head=head, programs=programs)
        outputs = predictors[classes](pool.effective(name), data.test, batch_size)
        version, count = pool.version(name), pool.count(name)
        at_end = measure(accuracy, outputs, data.test)
        tasks.append(
            {
                "name": name,
                "version": version.version,
                "accuracy": at_end,
                "validation_accuracy": version.record["validation_accuracy"],
                "finetune_accuracy": version.record.get("finetune_accuracy"),
                "probe_accuracy": version.record.get("probe_accuracy"),
                "params_ratio": count.ratio,
                "active_parameters": count.active,
                "private_parameters": count.private,
                "head_parameters": count.head,
                "bytes": version.bytes,
                "relation": pool.relation(name),
                **{key: version.record[key] for key in RECORDED},
            }
        )
        forgetting.append(
            {
                "task": name,
                "accuracy_when_learned": version.record["accuracy_when_learned"],
                "accuracy_at_end": at_end,
                "logits_sha256_when_learned": version.record["logits_sha256_when_learned"],
                "logits_sha256_at_end": outputs_sha256(outputs),
            }
        )
    counts = [pool.count(version.name) for version in pool.index.versions]
    return {
        "format": FORMAT,
        "method": method,
        "backbone": pool.index.backbone,
        "backbone_parameters": pool.layout.backbone_parameters,
        "total_params_ratio": accounting.total_params_ratio(counts),
        "pretrained": dict(pool.index.pretrained_record),
        "tasks": tasks,
        "forgetting": forgetting,
        "versions": versions(),
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
