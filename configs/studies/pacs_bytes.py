"""Three tasks from a CIFAR-10 ResNet-20: bits that a byte budget sets, at a fiftieth and around it.

Command:    python -m cwps_jax.study --config configs/studies/pacs_bytes.py --config.data_dir=DATA
            (several of these at once share the cells)
Data:       that of configs/pacs.py, see there
Run time:   a cell 4 to 5 minutes on one CPU core; 15 cells
Reached:    in the mean over tasks and seeds 89.2% at 0.05x, 88.0% at 0.02x, 88.5% at 0.01x and 87.6% at
            0.006x, where fine-tuning in float32 has 89.2%; see docs/experiments.md; not yet run on a GPU
"""

import pathlib

from cwps_jax.study import base_config

SEEDS = (0, 1, 2)


def get_config():
    config = base_config(pathlib.Path(__file__).parents[1] / "pacs.py")

    config.learning_rate = 0.05  # that of configs/pacs.py when it was run
    config.tasks = ("cartoon", "sketch", "Greek")
    config.budget = 1.0
    # When it was run.
    config.cwps.warm_up_share, config.cwps.hard_share, config.rounded_share = 0.25, 0.25, 0.75
    config.study = {
        "title": "Three tasks from a CIFAR-10 ResNet-20: bits that a byte budget sets",
        "grids": (
            {"method": ("finetune",), "row_bits": (32,), "seed": SEEDS},
            {"method": ("cwps",), "row_bits": (0,), "byte_budget": (0.02, 0.006, 0.01, 0.05), "seed": SEEDS},
        ),
        "baseline": {"method": "finetune", "byte_budget": 0.0, "row_bits": 32},
    }
    return config
