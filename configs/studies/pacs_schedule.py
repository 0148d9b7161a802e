"""How many epochs for each stage, on photos? As the paper splits them, and others; for validation images.

Command:    python -m cwps_jax.study --config configs/studies/pacs_schedule.py --config.data_dir=DATA
Data:       that of configs/pacs.py, see there, with seeds that no other table reports
Run time:   a cell 3 to 5 minutes on one CPU core; 21 cells
Reached:    84.9% on validation images with the longest soft stage, 84.3% with the default; see
            docs/trials.md; not yet run on a GPU
"""

import pathlib

from cwps_jax.study import base_config

SEEDS = (10, 11, 12)


def get_config():
    config = base_config(pathlib.Path(__file__).parents[1] / "pacs.py")

    config.learning_rate = 0.05  # that of configs/pacs.py when it was run
    config.tasks = ("cartoon", "sketch")
    config.rounded_share = 0.25  # where a grid does not say it
    coded = {"row_bits": (0,), "byte_budget": (0.02,), "budget": (1.0,), "seed": SEEDS}
    share = lambda warm_up, hard: {
        "cwps.warm_up_share": (warm_up,),
        "cwps.hard_share": (hard,),
        "seed": SEEDS,
    }
    config.study = {
        "title": "Epochs for each stage, on photos",
        "grids": (
            share(0.25, 0.25),
            share(0.2, 0.6),
            {**coded, "rounded_share": (0.75, 0.5)},
            share(0.1, 0.6),
            share(0.2, 0.4),
            # Without a soft stage: the hard one has all epochs after the warm-up.
            {"cwps.selection": ("moved",), "cwps.warm_up_share": (0.2,), "seed": SEEDS},
        ),
    }
    return config
