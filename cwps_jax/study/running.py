"""Runs the cells of a study that have no result yet, one after the other in this process."""

import functools
import itertools
import pathlib
import shutil
import statistics
import time

from rich.console import Console

from cwps_jax.errors import CwpsError
from cwps_jax.learn import learn_task
from cwps_jax.parallel import Parallel
from cwps_jax.provenance import KEY, learned_with
from cwps_jax.report.results import measure_pool
from cwps_jax.report.rounds import ROUND
from cwps_jax.rounds import settled
from cwps_jax.store.lock import Taken, locked
from cwps_jax.store.pool import Pool
from cwps_jax.study.cells import cell_path, check_now, fingerprints, finished_cells, write_cell
from cwps_jax.study.grid import MOST, Cell, Study
from cwps_jax.study.progress import StudyProgress
from cwps_jax.study.shared import Shared, model_key
from cwps_jax.train.records import Progress


def check_size(study: Study, yes: bool) -> None:
    """Raises CwpsError for more than `MOST` cells, unless `--yes` is given."""
    if study.most_cells > MOST and not yes:
        raise CwpsError(
            f"config.study.grids have {study.most_cells:,} cells, more than {MOST:,}: give --yes to run them "
            "all, or fewer values"
        )


def run_study(study: Study, workdir: pathlib.Path, console: Console) -> None:
    """Runs every cell that has no result in the workdir yet.

    A cell that cannot be run or that diverges is reported at once, and the others are still run. Several
    processes may run one study: each takes a cell that none of the others has.

    Raises:
        CwpsError: a result in the workdir has another config, other data or other versions; or, after all
            others, some cells could not be run.
    """
    running = workdir / ".running"
    running.mkdir(parents=True, exist_ok=True)
    shared = Shared(workdir / "pretrained")
    finished = finished_cells(workdir, study.cells)
    for cell, values in finished:
        data = {task: fingerprints(shared.load(cell.config, task)) for task in cell.config.tasks}
        check_now(workdir, cell, values, data)
    done = {cell.name for cell, _ in finished}
    left = [cell for cell in study.cells if cell.name not in done]
    failed = []
    with StudyProgress(len(study.cells), len(done), console) as progress:
        for cell in sorted(left, key=lambda cell: model_key(cell.config)):
            try:
                with locked(running / cell.name, "this cell is being run", seconds=0):
                    if cell_path(workdir, cell).exists():
                        progress.cell_done(f"{cell.name}: run by another process")
                    else:
                        _run_cell(cell, workdir, shared, progress)
            except Taken:
                progress.cell_done(f"{cell.name}: another process runs it")
            except (CwpsError, FloatingPointError) as error:
                failed.append(cell.name)
                progress.cell_done(f"{cell.name}: not run: {error}")
    if failed:
        raise CwpsError(
            f"{len(failed)} of {len(study.cells)} cells could not be run, see above: {', '.join(failed[:3])}"
            f"{', ...' if len(failed) > 3 else ''}; change the grid, or their settings"
        )


class _Clock:
    """Adds up the seconds of a task's epochs; the first of each stage, which compiles, counts as later ones.

    Attributes:
        seconds: of the stages that are over.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._ended: list[float] = []

    def epoch(self, progress: Progress) -> None:
        """Counts an epoch, at its end."""
        self._ended.append(time.perf_counter())
        if progress.last_of_stage:
            taken = [after - before for before, after in itertools.pairwise(self._ended)]
            usual = statistics.median(taken) if taken else progress.seconds_per_epoch
            self.seconds += usual * len(self._ended)
            self._ended.clear()


def _run_cell(cell: Cell, workdir: pathlib.Path, shared: Shared, progress: StudyProgress) -> None:
    """Learns the tasks of a cell into a pool of its own, measures them, and writes the result."""
    began = time.perf_counter()
    config = cell.config
    prepared, bench = shared.prepared(config)
    epochs = config.rounds * sum(map(prepared.epochs, config.tasks))
    clock = {name: _Clock() for name in config.tasks}
    folder = workdir / "pools" / cell.name
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was stopped
    shutil.copytree(shared.pretrained(prepared, lambda epoch: None), folder)
    pool = Pool.open(folder)
    for number, (name, task) in itertools.product(range(1, config.rounds + 1), prepared.tasks.items()):
        if number > 2 and settled(pool, config.tasks, number - 1):
            break

        def observe(epoch: Progress, clock: _Clock = clock[name]) -> None:
            clock.epoch(epoch)
            progress.epoch(cell.name, epochs, epoch)

        settings = prepared.settings[name][config.method]
        learn_task(
            pool,
            name,
            prepared.make_model(task.classes or 0),
            task,
            config=settings,
            trainer=prepared.trainer,
            observe=observe,
            notes={KEY: learned_with(name, task, settings, config.dtype), ROUND: number},
            relearn="better" if number > 1 else False,
        )
    results = measure_pool(
        Pool.open(folder),
        config.method,
        functools.partial(shared.load, config),
        prepared.make_model,
        Parallel(config.parallel),
        tasks=config.tasks,
        dtype=config.dtype,
        rounds=config.rounds,
        predictors=bench.predictors,
    )
    data = {task: fingerprints(shared.load(config, task)) for task in config.tasks}
    seconds = time.perf_counter() - began
    write_cell(
        cell_path(workdir, cell),
        cell,
        data=data,
        seconds=seconds,
        epochs_seconds={name: one.seconds for name, one in clock.items()},
        results=results,
    )
    shutil.rmtree(folder)
    validation = statistics.mean(row["validation_accuracy"] for row in results["rows"])
    kept = statistics.mean(row["params_ratio"] for row in results["rows"])
    progress.cell_done(f"{cell.name}: validation {validation:.3f}, {kept:.3f}x kept, {seconds:.0f} s")
