"""Is the channel the right grain? Gates by channel, by layer and by single weight, at equal bytes.

Command:    python -m cwps_jax.study --config configs/studies/pacs_grains.py --config.data_dir=DATA
Data:       that of configs/pacs.py, see there
Run time:   a cell 1.5 to 3 minutes on one CPU core that other work shared; 18 cells
Reached:    7 cells: by channel 63.8% at a tenth and 65.2% at a fifth, by layer 59.9% and 63.6%; see
            docs/experiments.md; the others are not yet run
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
