"""Do rounds help? The tasks learned once, twice and three times, each time with the others' newest models.

Command:    python -m cwps_jax.study --config configs/studies/pacs_rounds.py --config.data_dir=DATA
Data:       that of configs/pacs.py, see there
Run time:   not yet measured; a cell is five tasks of about 100 steps, once a round
Reached:    not yet run
"""

import pathlib

from cwps_jax.study import base_config

SEEDS = (0, 1, 2)


def get_config():
    config = base_config(pathlib.Path(__file__).parent / "pacs_search.py")

    # Bytes a task are equal; what older versions cost that others still borrow is told by round.
    config.study = {
        "title": "Rounds over five tasks",
        "grids": (
            {"method": ("cwps",), "rounds": (1, 2, 3), "seed": SEEDS},
            {"method": ("finetune",), "row_bits": (4,), "seed": SEEDS},
        ),
        "baseline": {"method": "cwps", "rounds": 1},
    }
    return config
