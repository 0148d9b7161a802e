"""The settings of configs/pacs.py, chosen on validation images of seeds that no table reports.

Command:    python -m cwps_jax.study --config configs/studies/pacs_choice.py --config.data_dir=DATA
            (several of these at once share the cells)
Data:       that of configs/pacs.py, see there
Run time:   a cell about 10 minutes on one slow CPU core; 14 cells
Reached:    a rate of 0.1 and batches of 32, see docs/trials.md; not yet run on a GPU or TPU
"""

import pathlib

from cwps_jax.study import base_config

SEEDS = (10, 11)


def get_config():
    config = base_config(pathlib.Path(__file__).parents[1] / "pacs.py")

    config.tasks = ("cartoon", "sketch", "Korean")
    config.study = {
        "title": "Two PACS domains and an alphabet: the rate and the batch size of fine-tuning",
        # By fine-tuning, with which cwps is compared: what is best for it is given to both.
        "grids": tuple(
            {"method": ("finetune",), "learning_rate": rates, "batch_size": sizes, "seed": (seed,)}
            # The second: 0.1 and 32 were the best of the first, at the edge of its rates.
            for rates, sizes in (((0.02, 0.05, 0.1), (32, 64)), ((0.2,), (32,)))
            for seed in SEEDS
        ),
    }
    return config
