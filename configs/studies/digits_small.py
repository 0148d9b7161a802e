"""A small study on the handwritten digits: three methods, three seeds, and a task learned alone.

Command:    python -m cwps_jax.study --config configs/studies/digits_small.py
Data:       embedded, scikit-learn's digits (see cwps_jax/data/digits.py)
Run time:   66 s on two CPU cores that other work shared, compilation included
Reached:    see docs/studies.md; not yet run on a GPU or TPU
"""

import pathlib

from cwps_jax.study import base_config

SEEDS = (0, 1, 2)


def get_config():
    config = base_config(pathlib.Path(__file__).parents[1] / "digits.py")

    config.tasks = ("negative", "loops")
    config.shots = 60
    config.study = {
        "title": "Two digit domains: accuracy against what a task keeps",
        "grids": (
            {"method": ("cwps", "finetune", "probe"), "seed": SEEDS},
            # What the second task gains from the first: the same, learned alone.
            {"method": ("cwps",), "tasks": (("loops",),), "seed": SEEDS[:1]},
        ),
        "baseline": {"method": "finetune"},
    }
    return config
