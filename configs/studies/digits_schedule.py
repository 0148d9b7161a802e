"""How many epochs for each stage? Shares of warm-up, hard and rounded epochs, to choose on validation images.

Command:    python -m cwps_jax.study --config configs/studies/digits_schedule.py
Data:       embedded, the demo's seven tasks, with seeds that no other table reports
Run time:   27 cells of half a minute on one CPU core
Reached:    within 0.4 points the same validation accuracy with all shares of warm-up and hard stage, see
            docs/trials.md; not yet run on a GPU or TPU
"""

import pathlib

from cwps_jax.study import base_config

SEEDS = (10, 11, 12)


def get_config():
    config = base_config(pathlib.Path(__file__).parents[1] / "digits.py")

    config.epochs = 10
    # Where a grid does not say it.
    config.cwps.warm_up_share, config.cwps.hard_share, config.rounded_share = 0.2, 0.6, 0.5
    share = lambda warm_up, hard: {
        "cwps.warm_up_share": (warm_up,),
        "cwps.hard_share": (hard,),
        "budget": (0.4,),
        "seed": SEEDS,
    }
    coded = {"row_bits": (0,), "byte_budget": (0.02,), "budget": (1.0,), "seed": SEEDS}
    config.study = {
        "title": "Epochs for each stage",
        "grids": (
            share(0.25, 0.25),  # the paper's warm-up: here 2 epochs, then 6 soft and 2 hard ones
            share(0.2, 0.4),
            share(0.2, 0.6),
            share(0.1, 0.6),
            share(0.1, 0.8),
            # Without a soft stage: the hard one has all epochs after the warm-up.
            {
                "cwps.selection": ("moved",),
                "cwps.warm_up_share": (0.2,),
                "budget": (0.4,),
                "seed": SEEDS,
            },
            {**coded, "rounded_share": (0.25, 0.5, 0.75)},
        ),
    }
    return config
