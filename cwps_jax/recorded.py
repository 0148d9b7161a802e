"""The record of a task: its metrics on held-out data, the cost of its training, and its stored size."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn

from cwps_jax.core.accounting import count_stored
from cwps_jax.core.channels import Layout
from cwps_jax.core.compact import capacity_of
from cwps_jax.core.trees import flatten
from cwps_jax.data.task import TaskData
from cwps_jax.methods.method import Stored
from cwps_jax.settings import TrainConfig
from cwps_jax.train.curve import smallest
from cwps_jax.train.evaluation import measure, outputs_sha256
from cwps_jax.train.finite import check_outputs
from cwps_jax.train.named_metrics import metric_name
from cwps_jax.train.records import Trained
from cwps_jax.train.trainer import Trainer


def measured(
    trained: Trained,
    variables: Mapping[str, Any],
    model: nn.Module,
    data: TaskData,
    config: TrainConfig,
    trainer: Trainer,
) -> dict[str, Any]:
    """Returns the record of a task: its metrics on held-out data, and the cost of its training.

    `accuracy_when_learned` and `validation_accuracy` are values of the metric that "metric" names.
    """
    predictor = trainer.predictor(trainer.model_of(trained.method, model))
    # A head that has more outputs than the task's moves no other numbers than the task's.
    own_head = sum(flatten(variables["params"])[path].size for path in trainer.layout.head_paths)
    validation = predictor(variables, data.validation, config.batch_size)
    test = predictor(variables, data.test, config.batch_size)
    for split, outputs in {"validation": validation, "test": test}.items():
        check_outputs(outputs, split)
    placed = trained.finished.moment.frozen.get("placed")
    return {
        "metric": metric_name(trainer.metric),
        "accuracy_when_learned": measure(trainer.metric, test, data.test),
        "logits_sha256_when_learned": outputs_sha256(test),
        "validation_accuracy": measure(trainer.metric, validation, data.validation),
        "lambda": trained.so_far.lambda_,
        "budget": config.budget,
        "row_bits": config.row_bits,
        "epochs": trained.epochs,
        "seconds": trained.so_far.seconds,
        "trained": trained.so_far.numbers - trainer.layout.head_parameters + own_head,
        "peak_memory_bytes": trained.so_far.peak_memory_bytes,
        "flops_per_step": trained.so_far.flops_per_step,
        "seed": config.seed,
        "classes": data.classes,
        **({"curve": trained.curve} if trained.curve else {}),
        "capacity": placed and capacity_of(trainer.layout, placed),  # later tasks share the compiled step
    }


def counted(layout: Layout, stored: Stored) -> dict[str, Any]:
    """Returns the counts of parameters, bits and bytes that are to be stored of a task."""
    count = count_stored(layout, flatten(stored.own), stored.rows)
    return {
        "params_ratio": count.ratio,
        "byte_ratio": count.byte_ratio,
        "parameters": count.active + count.private,
        "head_parameters": count.head,
        "bits": count.bits,
        "bytes": count.bits // 8,
    }


def smallest_good(
    found: Sequence[tuple[Trained, Stored, Mapping[str, Any]]],
    model: nn.Module,
    data: TaskData,
    config: TrainConfig,
    trainer: Trainer,
) -> tuple[Trained, Stored, Any]:
    """Returns which of several budgets a task keeps, with the curve of all of them.

    Args:
        found: for each of `config.by_budget()` what was trained, what there is to store, and the variables.
        model, data, config, trainer: see `learn.learn_task`.
    """
    curve = []
    for own, (trained, stored, variables) in zip(config.by_budget(), found, strict=True):
        predictor = trainer.predictor(trainer.model_of(trained.method, model))
        outputs = predictor(variables, data.validation, config.batch_size)
        count = counted(trainer.layout, stored)
        size = {key: count[key] for key in ("byte_ratio", "bytes", "params_ratio")}
        reached = measure(trainer.metric, outputs, data.validation)
        curve.append({"byte_budget": own.byte_budget, **size, "validation_accuracy": reached})
    kept = smallest(curve, config.tolerance)
    trained, stored, variables = found[kept]
    told = tuple({**one, "kept": at == kept} for at, one in enumerate(curve))
    return dataclasses.replace(trained, curve=told), stored, variables
