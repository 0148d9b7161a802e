"""Three tasks from a CIFAR-10 ResNet-20: what a task reaches for 0.05x and 0.02x of a backbone's bytes.

Command:    python -m cwps_jax.study --config configs/studies/pacs_bits.py --config.data_dir=DATA
            (several of these at once share the cells)
Data:       that of configs/pacs.py, see there
Run time:   a cell 5.5 to 8 minutes on one CPU core; 15 cells
Reached:    in the mean over tasks and seeds 87.5% at 0.05x and 86.2% at 0.02x, 88.4% at 0.05x without a soft
            stage; fine-tuned 89.2% in float32 and 88.5% in 2 bits;
            see docs/trials.md; not yet run on a GPU or TPU
"""

import pathlib

from cwps_jax.study import base_config

SEEDS = (0, 1, 2)


def get_config():
    config = base_config(pathlib.Path(__file__).parents[1] / "pacs.py")

    config.learning_rate = 0.05  # that of configs/pacs.py when it was run
    config.tasks = ("cartoon", "sketch", "Greek")
    config.budget = 1.0
    config.rounded_share = 0.25  # the default when it was run
    config.cwps.selection = "learned"
    config.study = {
        "title": "Three tasks from a CIFAR-10 ResNet-20: accuracy against bytes",
        "grids": (
            {"method": ("cwps",), "byte_budget": (0.05, 0.02), "row_bits": (2,), "seed": SEEDS},
            {
                "method": ("cwps",),
                "cwps.selection": ("moved",),
                "byte_budget": (0.05,),
                "row_bits": (2,),
                "seed": SEEDS,
            },
            {"method": ("finetune",), "row_bits": (32, 2), "seed": SEEDS},
        ),
        "baseline": {
            "method": "finetune",
            "byte_budget": 0.0,
            "row_bits": 32,
            "cwps": {"selection": "learned"},
        },
    }
    return config
