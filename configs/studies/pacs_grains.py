"""Is the channel the right grain? Gates by channel, by layer and by single weight, at equal bytes.

Command:    python -m cwps_jax.study --config configs/studies/pacs_grains.py --config.data_dir=DATA
Data:       that of configs/pacs.py, see there
Run time:   a cell 1 to 2 minutes on one CPU core; 18 cells
Reached:    by channel 64.3% at a tenth and 65.6% at a fifth, by layer 60.3% and 63.2%, by single weight 64.7%
            and 67.1%; see docs/experiments.md; not yet run on a GPU
"""

import pathlib

from cwps_jax.study import base_config

SEEDS = (0, 1, 2)
SIZES = (0.1, 0.2)  # of a backbone's bytes
MASK = 1 / 32  # what a bit for each weight costs


def get_config():
    config = base_config(pathlib.Path(__file__).parent / "pacs_search.py")

    config.row_bits = 32
    config.byte_budget = 0.0  # single weights have no price in bytes
    config.study = {
        "title": "The grain of gates, at equal bytes",
        "grids": (
            {"seed": SEEDS, "cwps.granularity": ("channel", "layer"), "budget": SIZES},
            {"seed": SEEDS, "cwps.granularity": ("weight",), "budget": tuple(size - MASK for size in SIZES)},
        ),
    }
    return config
