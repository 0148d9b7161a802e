"""Every method on three PACS domains from a CIFAR-10 ResNet-20: accuracy against bytes, few bits included.

Command:    python -m cwps_jax.study --config configs/studies/pacs_methods.py --config.data_dir=DATA
            (several of these at once share the cells)
Data:       that of configs/pacs.py, see there; 50 images a class (--config.shots=0 takes all, not yet run)
Run time:   not yet measured
Reached:    not yet run
"""

import pathlib

from cwps_jax.study import base_config

SEEDS = (0, 1, 2)


def get_config():
    config = base_config(pathlib.Path(__file__).parents[1] / "pacs.py")

    config.tasks = ("cartoon", "photo", "sketch")
    config.shots = 50
    config.batch_size = 16
    config.budget = 1.0
    grids = []
    for seed in SEEDS:  # a seed after the other: what is finished is paired
        grids += [
            {"method": ("finetune",), "row_bits": (32, 4, 2)},
            {"method": ("cwps",), "row_bits": (0,), "byte_budget": (0.05, 0.02, 0.01, 0.006)},
            {"method": ("cwps",), "budget": (0.45,)},
            {"method": ("lora",), "lora.rank": (8, 1), "row_bits": (32, 4)},
            {"method": ("adapter",), "row_bits": (32, 4)},
            {"method": ("probe", "norm_only", "bitfit", "ssf", "piggyback", "packnet", "ba2", "taps")},
        ]
        for grid in grids[-6:]:
            grid["seed"] = (seed,)
    config.study = {
        "title": "Every method on three PACS domains, 50 images a class: accuracy against bytes",
        "grids": tuple(grids),
        "baseline": {"method": "finetune", "row_bits": 32, "byte_budget": 0.0, "budget": 1.0},
    }
    return config
