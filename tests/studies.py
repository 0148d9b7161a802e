"""What the tests of studies share: the small study that is shipped, shrunk further, and invented results."""

import importlib.util
import os
import pathlib

from cwps_jax.report.rows import make_row
from cwps_jax.study import Study, read_study

PARAMETERS = 1000
TASKS = ("negative", "loops")
CONFIGS = pathlib.Path(__file__).parent.parent / "configs" / "studies"


def study_config(name: str):
    """Returns the ConfigDict of a shipped study."""
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def small_config(cache: pathlib.Path, **changes):
    """Returns the ConfigDict of six cells: two methods in two seeds, and the second task learned alone.

    Args:
        cache: folder of what is remembered of data.
        changes: keys of the main config, or of the study.
    """
    config = study_config("digits_small")
    config.shots, config.epochs, config.source_epochs, config.norm_batches = 16, 3, 1, 1
    config.cache_dir, config.compilation_cache = str(cache), os.environ["CWPS_TEST_CACHE"]
    seeds = (0, 1)
    config.study.grids = (
        {"method": ("cwps", "finetune"), "seed": seeds},
        {"method": ("cwps",), "tasks": (("loops",),), "seed": seeds},
    )
    config.study.baseline = {"method": "finetune"}
    for key, value in changes.items():
        place = config.study if key in ("grids", "baseline", "title") else config
        place[key] = value
    return config


def small_study(cache: pathlib.Path, **changes) -> Study:
    """Returns the study of `small_config`."""
    return read_study(small_config(cache, **changes))


def invented_result(cell, accuracy, validation=0.5, size=100, **known):
    """Returns a cell's file in which every task reached the same."""
    rows, forgetting = [], []
    for task in cell.config.tasks:
        own = {"task": task, "method": cell.config.method, "draw": 0, "accuracy": accuracy}
        costs = {"bytes": size, "parameters": size // 4, "params_ratio": size / 4000, "trained": 7}
        rows.append(
            make_row({**own, **costs, "validation_accuracy": validation, "peak_memory_bytes": 5, **known})
        )
        hashes = {"logits_sha256_when_learned": "a", "logits_sha256_at_end": "a"}
        forgetting.append({"accuracy_when_learned": accuracy, "accuracy_at_end": accuracy, **hashes})
    results = {
        "method": cell.config.method,
        "backbone": cell.config.backbone,
        "backbone_parameters": PARAMETERS,
        "versions": {"jax": "0", "device": "1 x <none>"},
        "rows": rows,
        "forgetting": forgetting,
    }
    return {"seconds": 60.0, "epochs_seconds": dict.fromkeys(cell.config.tasks, 2.0), "results": results}


def invented_cells(cache: pathlib.Path):
    """Returns a study and its cells by hand: small budget 0.6, large 0.8, fine-tuning 0.85; alone 0.75.

    Each is a hundredth better a seed.
    """
    grids = (
        {"method": ("cwps",), "budget": (0.1, 0.4), "seed": (0, 1, 2)},
        {"method": ("finetune",), "seed": (0, 1, 2)},
        {"method": ("cwps",), "tasks": (("loops",),), "seed": (0, 1, 2)},
    )
    study = small_study(cache, grids=grids, title="Is <cwps> any good?")
    worth = {("cwps", 0.1): (0.6, 100), ("cwps", 0.4): (0.8, 400), ("finetune", 0.4): (0.85, 900)}
    found = []
    for cell in study.cells:
        accuracy, size = worth[cell.config.method, cell.config.budget]
        if len(cell.config.tasks) == 1:
            accuracy = 0.75
        accuracy += 0.01 * cell.config.seed
        found.append((cell, invented_result(cell, accuracy, accuracy - 0.1, size)))
    return study, found
