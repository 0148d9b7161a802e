"""A small study on the handwritten digits: three methods and two budgets, three seeds, two tasks.

Command:    python -m cwps_jax.study --config configs/studies/digits_small.py
Data:       embedded, scikit-learn's digits (see cwps_jax/data/digits.py)
Run time:   see docs/studies.md
Reached:    see docs/studies.md
"""

import pathlib

from cwps_jax.study import base_config

SEEDS = (0, 1, 2)


def get_config():
    config = base_config(pathlib.Path(__file__).parents[1] / "digits.py")

    config.tasks = ("negative", "loops")
    config.shots = 24
    config.epochs = 4
    config.source_epochs = 4
    config.study = {
        "title": "Two digit domains: accuracy against what a task keeps",
        "grids": (
            {"method": ("cwps",), "budget": (0.1, 0.3), "seed": SEEDS},
            {"method": ("finetune", "probe"), "seed": SEEDS},
            {"method": ("cwps",), "budget": (0.3,), "tasks": (("loops",),), "seed": SEEDS},
        ),
        "baseline": {"method": "finetune", "budget": config.budget},
    }
    return config
