"""How many epochs for each stage, with few images and small budgets? To choose on validation images.

Command:    python -m cwps_jax.study --config configs/studies/pacs_few_schedule.py --config.data_dir=DATA
            (several of these at once share the cells)
Data:       that of configs/pacs.py, see there, with seeds that no other table reports
Run time:   a cell about a minute on one CPU core; 27 cells
Reached:    with 0.6 of the epochs for the hard stage, 64.6% on validation images at 0.1x, where a quarter of
            them has 62.9%; see docs/trials.md; not yet run on a GPU
"""

import pathlib

from cwps_jax.study import base_config

SEEDS = (10, 11, 12)
BUDGETS = (0.1, 0.2, 0.45)  # of a backbone's parameters


def get_config():
    config = base_config(pathlib.Path(__file__).parent / "pacs_search.py")

    config.row_bits = 32
    config.byte_budget = 0.0
    # Where a grid does not say it.
    config.cwps.warm_up_share, config.cwps.hard_share = 0.25, 0.25
    share = lambda warm_up, hard: {"cwps.warm_up_share": (warm_up,), "cwps.hard_share": (hard,)}
    config.study = {
        "title": "Epochs for each stage, with few images and small budgets",
        # A seed after the other: what is finished is paired.
        "grids": tuple(
            {**way, "budget": BUDGETS, "seed": (seed,)}
            for seed in SEEDS
            for way in (
                share(0.25, 0.25),
                share(0.2, 0.6),
                {"cwps.selection": ("moved",), "cwps.warm_up_share": (0.2,)},
            )
        ),
    }
    return config
