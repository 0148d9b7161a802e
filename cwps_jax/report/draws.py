"""Several independent runs of one config: where each is, and their results as one."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from cwps_jax.config import RunConfig


def draw_folders(config: RunConfig, workdir: pathlib.Path) -> list[tuple[RunConfig, pathlib.Path]]:
    """Returns each draw's config, with a seed of its own, and its folder; the workdir itself for one draw."""
    if config.draws == 1:
        return [(config, workdir)]
    return [
        (dataclasses.replace(config, seed=config.seed + draw, draws=1), workdir / f"draw{draw}")
        for draw in range(config.draws)
    ]


def together(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the results of all draws as one: the first draw's, with everyone's rows."""
    keys = ("rows", "totals", "forgetting", "not_measured", "rounds", "curves")
    lists = {key: [row for one in results for row in one[key]] for key in keys}
    return {**results[0], **lists}
