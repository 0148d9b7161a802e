"""Does a deeper network cost CWPS more? ResNet-20, 32, 44 and 56, at a fiftieth of each one's bytes.

Command:    python -m cwps_jax.study --config configs/studies/pacs_depths.py --config.data_dir=DATA
            (several of these at once share the cells)
Data:       that of configs/pacs.py, see there
Weights:    DATA/weights/<backbone>10.safetensors, as configs/pacs.py has them for resnet20_cifar
Run time:   a cell 2 to 14 minutes on one slow CPU core, the longer the deeper; 24 cells
Reached:    0.3 to 0.7 points under fine-tuning at each depth, see docs/experiments.md; not yet run on a GPU
            or TPU
"""

import pathlib

from cwps_jax.study import base_config

SEEDS = (0, 1, 2)
BACKBONES = ("resnet20_cifar", "resnet32_cifar", "resnet44_cifar", "resnet56_cifar")


def get_config():
    config = base_config(pathlib.Path(__file__).parents[1] / "pacs.py")

    config.learning_rate = 0.05  # that of configs/pacs.py when it was run
    config.tasks = ("cartoon", "sketch", "photo")
    config.shots = 50
    config.weights = config.get_ref("data_dir") + "/weights/" + config.get_ref("backbone") + "10.safetensors"
    config.budget = 1.0
    config.study = {
        "title": "Depth: a fiftieth of a backbone's bytes against fine-tuning in float32",
        # A seed after the other: what is finished is paired.
        "grids": tuple(
            {"seed": (seed,), "backbone": BACKBONES, **way}
            for seed in SEEDS
            for way in (
                {"method": ("finetune",), "row_bits": (32,)},
                {"method": ("cwps",), "row_bits": (0,), "byte_budget": (0.02,)},
            )
        ),
        "baseline": {"method": "finetune", "row_bits": 32, "byte_budget": 0.0},
    }
    return config
