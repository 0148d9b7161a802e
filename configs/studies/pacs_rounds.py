"""Do rounds help? The tasks learned once, twice and three times, each time with the others' newest models.

Command:    python -m cwps_jax.study --config configs/studies/pacs_rounds.py --config.data_dir=DATA
Data:       that of configs/pacs.py, see there
Run time:   a cell 2 to 10 minutes on one slow CPU core; 12 cells
Reached:    in the mean over tasks and seeds 66.6% with one round, 67.0% with two, 67.1% with three; see
            docs/experiments.md; not yet run on a GPU or TPU
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
