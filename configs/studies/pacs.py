"""Six tasks from a CIFAR-10 ResNet-20: every method that stores weights, in 32 to 2 bits, three seeds.

Command:    python -m cwps_jax.study --config configs/studies/pacs.py --config.data_dir=DATA
Data:       that of configs/pacs.py, see there
Run time:   not yet measured; a cell is a run of configs/pacs.py without its compared methods
Reached:    not yet run
"""

import pathlib

from cwps_jax.study import base_config

SEEDS = (0, 1, 2)
BITS = (32, 8, 4, 3, 2)


def get_config():
    config = base_config(pathlib.Path(__file__).parents[1] / "pacs.py")

    config.study = {
        "title": "Six tasks from a CIFAR-10 ResNet-20: accuracy against bytes",
        "grids": (
            {"method": ("cwps",), "budget": (0.1, 0.2, 0.45), "row_bits": BITS, "seed": SEEDS},
            {"method": ("finetune",), "row_bits": BITS, "seed": SEEDS},
            {"method": ("probe", "norm_only", "bitfit", "lora", "adapter", "piggyback"), "seed": SEEDS},
        ),
        "baseline": {"method": "finetune", "budget": config.budget, "row_bits": 32},
    }
    return config
