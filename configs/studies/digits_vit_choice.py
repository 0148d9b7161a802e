"""The settings of configs/digits_vit.py, to be chosen on validation images of seeds that no table reports.

Command:    python -m cwps_jax.study --config configs/studies/digits_vit_choice.py
Data:       embedded, other tasks than those of configs/digits_vit.py
Run time:   not yet measured
Reached:    not yet run
"""

import pathlib

from cwps_jax.study import base_config

SEEDS = (10, 11, 12)


def get_config():
    config = base_config(pathlib.Path(__file__).parents[1] / "digits_vit.py")

    config.tasks = ("negative", "rotated", "clutter", "outline")  # none of those that the table reports
    config.study = {
        "title": "A vision transformer on the digits: rate and decay",
        "grids": tuple(
            {
                "method": ("finetune", "cwps"),
                "learning_rate": (rate,),
                "weight_decay": decays,
                "seed": SEEDS,
            }
            for rate, decays in ((1e-3, (0.05, 0.3)), (3e-3, (0.05, 0.3, 1.0)), (1e-2, (0.3,)))
        ),
    }
    return config
