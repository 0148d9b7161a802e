"""The learning rates of configs/studies/pacs_methods.py, on validation images of another task than its own.

Command:    python -m cwps_jax.study --config configs/studies/pacs_methods_rates.py --config.data_dir=DATA
            (several of these at once share the cells)
Data:       that of configs/pacs.py, see there
Run time:   a cell about 50 s on one slow CPU core; 58 cells
Reached:    see docs/trials.md; not yet run on a GPU or TPU
"""

import pathlib

from cwps_jax.study import base_config

# The validation set has 164 images; the two strongest of the other methods get three seeds.
SEEDS = (10, 11, 12)


def get_config():
    config = base_config(pathlib.Path(__file__).with_name("pacs_methods.py"))

    config.tasks = ("art_painting",)
    config.seed = 10
    rates = (0.02, 0.05, 0.1)
    config.study = {
        "title": "The rates of every method, 50 images per class of another task",
        "grids": (
            {"method": ("finetune",), "learning_rate": rates},
            {"method": ("cwps",), "byte_budget": (0.02,), "row_bits": (0,), "learning_rate": rates},
            {"method": ("taps",), "learning_rate": rates},
            {"method": ("lora",), "lora.learning_rate": (1e-3, 3e-3, 1e-2, 3e-2), "seed": SEEDS},
            {"method": ("adapter",), "adapter.learning_rate": (0.03, 0.1, 0.3), "seed": SEEDS},
            {"method": ("norm_only", "probe"), "learning_rate": (0.02, 0.05, 0.2)},
            {"method": ("bitfit",), "learning_rate": (0.02, 0.05, 0.2, 0.5)},
            {"method": ("ssf",), "ssf.learning_rate": (3e-3, 1e-2, 3e-2, 0.1)},
            {"method": ("piggyback",), "piggyback.learning_rate": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)},
            {"method": ("packnet",), "packnet.learning_rate": (1e-3, 3e-3, 0.01, 0.03, 0.1)},
            {"method": ("ba2",), "ba2.learning_rate": (3e-4, 1e-3, 3e-3, 0.01)},
        ),
    }
    return config
