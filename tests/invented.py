"""Results of methods that nobody has written: what is shown of results must not depend on a method's name."""

from collections.abc import Sequence

from cwps_jax.report.rows import make_row, totals

TASKS = ("birds", "cars")


def methods(count: int) -> list[str]:
    return [f"method{number}" for number in range(count)]


def accuracy(task: str, number: int, draw: int, tasks: Sequence[str] = TASKS) -> float:
    """Returns a value that no other task, method or draw has."""
    return 0.9 - 0.03 * number - 0.005 * tasks.index(task) - 0.001 * draw**2


def invented(count: int, draws: int = 1, tasks: Sequence[str] = TASKS) -> dict:
    """Returns results of format 2 with so many methods, of which the first is the run's own."""
    rows = [
        make_row(
            {
                **{"task": task, "method": method, "draw": draw, "seed": 10 + draw, "stored": not number},
                **{"accuracy": accuracy(task, number, draw, tasks), "validation_accuracy": 0.5, "epochs": 8},
                **{"params_ratio": 0.25 * (1 + number), "parameters": 250 * (1 + number), "trained": 1000},
                **{"head_parameters": 30, "bits": 8000 * (1 + number), "bytes": 1000 * (1 + number)},
                **{"byte_ratio": 0.125 * (1 + number), "row_bits": 32},
                **{"seconds": 2.5, "peak_memory_bytes": 2_000_000, "flops_per_step": 3e9},
                "version": None if number else 1,
                "relation": None if number else {"pretrained": 0.75, task: 0.25},
            }
        )
        for draw in range(draws)
        for task in tasks
        for number, method in enumerate(methods(count))
    ]
    forgetting = [
        {
            **{"task": row["task"], "method": row["method"], "draw": row["draw"]},
            **{"accuracy_when_learned": row["accuracy"], "accuracy_at_end": row["accuracy"]},
            **{"logits_sha256_when_learned": "a", "logits_sha256_at_end": "a"},
        }
        for row in rows
        if row["stored"]
    ]
    return {
        **{"format": 2, "method": "method0", "backbone": "mlp", "backbone_parameters": 1000},
        **{"pretrained": {}, "versions": {"jax": "0", "device": "1 x cpu"}},
        **{"rows": rows, "totals": totals(rows), "forgetting": forgetting},
        **{"class_names": {}, "not_measured": [], "rounds": [], "curves": []},
    }
