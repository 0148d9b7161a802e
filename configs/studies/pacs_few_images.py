"""Three tasks from a CIFAR-10 ResNet-20, ten training images a class: the head first, and few bytes.

Command:    python -m cwps_jax.study --config configs/studies/pacs_few_images.py --config.data_dir=DATA
            (several of these at once share the cells)
Data:       that of configs/pacs.py, see there
Run time:   a cell 1.6 to 2.6 minutes on one CPU core; 18 cells
Reached:    in the mean over tasks and draws 69.4% at 0.05x, 67.8% at 0.02x; fine-tuned 68.7%, and 69.5% with
            the head first; see docs/experiments.md; not yet run on a GPU or TPU
"""

import pathlib

from cwps_jax.study import base_config

SEEDS = (0, 1, 2)


def get_config():
    config = base_config(pathlib.Path(__file__).parents[1] / "fewshot.py")

    config.tasks = ("cartoon", "sketch", "Greek")
    config.draws = 1  # the seeds are the draws
    config.budget = 1.0
    config.study = {
        "title": "Ten images a class: the head first, and few bytes",
        "grids": (
            {"method": ("finetune",), "head_share": (0.0, 0.25), "seed": SEEDS},
            {
                "method": ("cwps",),
                "cwps.selection": ("moved",),
                "head_share": (0.25,),
                "byte_budget": (0.05, 0.02),
                "row_bits": (2, 0),
                "seed": SEEDS,
            },
        ),
        "baseline": {
            "method": "finetune",
            "head_share": 0.0,
            "byte_budget": 0.0,
            "row_bits": 32,
            "cwps": {"selection": "learned"},
        },
    }
    return config
