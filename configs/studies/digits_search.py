"""Does the search matter? Parents by every way there is, at equal size, on the handwritten digits.

Command:    python -m cwps_jax.study --config configs/studies/digits_search.py
Data:       embedded, scikit-learn's digits (see cwps_jax/data/digits.py)
Run time:   a cell about 30 s on one CPU core; 18 cells
Reached:    97.2 to 97.4% in the mean over tasks and seeds, whichever way parents are found; see
            docs/experiments.md; not yet run on a GPU or TPU
"""

import pathlib

from cwps_jax.study import base_config

SEEDS = (0, 1, 2)


def get_config():
    config = base_config(pathlib.Path(__file__).parents[1] / "digits.py")

    config.budget = 0.2  # four fifths of the weights come from the parent
    config.study = {
        "title": "The search question on seven digit domains, at 0.2x of a backbone",
        # A seed after the other: what is finished is paired.
        "grids": tuple(
            {"seed": (seed,), **ways}
            for seed in SEEDS
            for ways in (
                {"cwps.search_distance": ("change", "l2", "cosine")},
                {"cwps.search_candidates": ("random", "pretrained")},
                {"cwps.search_granularity": ("model",)},
            )
        ),
        "baseline": {
            "cwps": {
                "search_distance": "change",
                "search_candidates": "random",
                "search_granularity": "channel",
            }
        },
    }
    return config
