"""The second half of a run of main: `finish` measures the models of the pool in a fresh process.

Several processes may do the same together; only the first one of them writes.
"""

import functools
import pathlib
from typing import Any

from rich.console import Console

from cwps_jax import data, distributed
from cwps_jax.config import DataConfig, RunConfig
from cwps_jax.data.task import TaskData
from cwps_jax.extras import check_extra
from cwps_jax.files import write_atomically
from cwps_jax.parallel import Parallel
from cwps_jax.prepare import load_task, model_maker, open_image_cache
from cwps_jax.provenance import KEY
from cwps_jax.report.draws import draw_folders, together
from cwps_jax.report.results import measure_pool, write_json
from cwps_jax.report.table import show_results
from cwps_jax.store.pool import Pool


def finish(config: RunConfig, workdir: pathlib.Path, console: Console) -> dict[str, Any]:
    """Measures every task of the workdir's pool, shows the table, and writes results.json and the report.

    It uses nothing from the process that trained, so the measured models are the stored ones. With several
    draws each has results and a report of its own, and the workdir's results.json has the rows of all.
    """
    check_extra("report", "the report of a run")
    from cwps_jax.report.pictures import draw_comparison  # matplotlib is not needed to learn

    folders = draw_folders(config, workdir)
    finished = [_finish_draw(*draw, number, console) for number, draw in enumerate(folders)]
    if config.draws == 1:
        return finished[0]
    results = together(finished)
    if distributed.first():
        _write(config, results, workdir, draw_comparison(results, workdir / "report"), console)
    return results


def _finish_draw(config: RunConfig, workdir: pathlib.Path, number: int, console: Console) -> dict[str, Any]:
    from cwps_jax.report.pictures import draw_report  # matplotlib is not needed to learn

    pool = Pool.open(workdir / "pool")
    results = measure_pool(
        pool,
        config.method,
        functools.partial(_load_stored, config, pool),
        model_maker(config),
        Parallel(config.parallel),
        tasks=config.tasks,
        dtype=config.dtype,
        draw=number,
        rounds=config.rounds,
    )
    if distributed.first():
        _write(config, results, workdir, draw_report(pool, results, workdir / "report"), console)
    return results


def _load_stored(config: RunConfig, pool: Pool, name: str) -> TaskData:
    """Returns a stored task's data: by the config if it has the task, otherwise as it was learned."""
    cache = open_image_cache(config)
    told = pool.version(name).record.get(KEY, {})
    images = told.get("images")
    if name in config.tasks or not images:
        return load_task(config, name, cache)
    here = ("cache", "cache_gigabytes", "cache_dir", "reader_threads", "prefetch")
    settings = DataConfig(**{**images, **{key: getattr(config, key) for key in here}})
    return data.load(settings, told["task"], seed=told["config"]["seed"], cache=cache)


def _write(
    config: RunConfig,
    results: dict[str, Any],
    workdir: pathlib.Path,
    pictures: list[pathlib.Path],
    console: Console,
) -> None:
    """Writes what was measured, as numbers and as a page, and tells where."""
    from cwps_jax.report.run_page import run_page

    write_json(workdir / "results.json", results)
    write_atomically(workdir / "report.html", run_page(results, config, pictures))
    show_results(results, console)
    console.print(f"Results: {workdir / 'results.json'}", soft_wrap=True, highlight=False)
    for picture in pictures:
        console.print(f"Picture: {picture}", soft_wrap=True, highlight=False)
    console.print(f"Report: {workdir / 'report.html'}", soft_wrap=True, highlight=False)
