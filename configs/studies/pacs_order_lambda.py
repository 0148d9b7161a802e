"""How much hangs on the order of the tasks, and on lambda where there is no budget?

Command:    python -m cwps_jax.study --config configs/studies/pacs_order_lambda.py --config.data_dir=DATA
Data:       that of configs/pacs.py, see there
Run time:   not yet measured; a cell is five tasks of about 100 steps
Reached:    not yet run
"""

import pathlib

from cwps_jax.study import base_config

SEEDS = (0, 1, 2)


def get_config():
    config = base_config(pathlib.Path(__file__).parent / "pacs_search.py")

    tasks = tuple(config.tasks)
    config.study = {
        "title": "The order of tasks, and lambda",
        "grids": (
            {"seed": SEEDS, "tasks": (tasks, tasks[::-1], (*tasks[2:], *tasks[:2]))},
            # Without a budget lambda alone says how much a task keeps.
            {"seed": SEEDS, "byte_budget": (0.0,), "cwps.lambda_": (0.1, 0.3, 0.5, 0.7, 1.0)},
        ),
    }
    return config
