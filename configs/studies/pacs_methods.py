"""Every method on three PACS domains from a CIFAR-10 ResNet-20: accuracy against bytes, few bits included.

Command:    python -m cwps_jax.study --config configs/studies/pacs_methods.py --config.data_dir=DATA
            (several of these at once share the cells)
Data:       that of configs/pacs.py, see there; 50 images per class (--config.shots=0 takes all, not yet run)
Run time:   a cell 2 to 3 minutes on one slow CPU core; 66 cells
Reached:    see docs/experiments.md; not yet run on a GPU or TPU
"""

import pathlib

from cwps_jax.study import base_config

SEEDS = (0, 1, 2)


def get_config():
    config = base_config(pathlib.Path(__file__).parents[1] / "pacs.py")

    config.learning_rate = 0.05  # that of configs/pacs.py when it was run
    config.tasks = ("cartoon", "photo", "sketch")
    config.shots = 50
    config.batch_size = 16
    config.budget = 1.0
    # Chosen on validation images of another task, see pacs_methods_rates.py.
    config.lora.learning_rate = 1e-2
    config.adapter.learning_rate = 0.1
    config.ssf.learning_rate = 3e-2
    config.piggyback.learning_rate = 1e-4
    config.packnet.learning_rate = 3e-3
    config.ba2.learning_rate = 3e-3
    grids = []
    for seed in SEEDS:  # a seed after the other: what is finished is paired
        one = {"seed": (seed,)}
        grids += [
            {"method": ("finetune",), "row_bits": (32, 4, 2), **one},
            {"method": ("cwps",), "row_bits": (0,), "byte_budget": (0.05, 0.02, 0.01, 0.006), **one},
            {"method": ("cwps",), "budget": (0.45,), **one},
            {"method": ("lora",), "lora.rank": (8, 1), "row_bits": (32, 4), **one},
            {"method": ("adapter",), "row_bits": (32, 4), **one},
            {"method": ("probe", "norm_only", "ssf", "piggyback", "packnet", "ba2", "taps"), **one},
            {"method": ("bitfit",), "learning_rate": (0.2,), **one},
        ]
    config.study = {
        "title": "Every method on three PACS domains, 50 images per class: accuracy against bytes",
        "grids": tuple(grids),
        "baseline": {
            "method": "finetune",
            "row_bits": 32,
            "byte_budget": 0.0,
            "budget": 1.0,
            "learning_rate": config.learning_rate,
        },
    }
    return config
