"""The first half of a run of main: `learn` fills the pool; `finish.py` measures the models that it holds.

Several processes may do the same together; only the first one of them writes.
"""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console

from cwps_jax import distributed
from cwps_jax.config import RunConfig
from cwps_jax.errors import Preempted
from cwps_jax.extras import check_extra
from cwps_jax.learn import learn_task, train_task
from cwps_jax.prepare import Prepared, prepare
from cwps_jax.pretraining import origin, pretrained_pool, stored_pool
from cwps_jax.profiling import Profiler
from cwps_jax.provenance import (
    KEY,
    check_task,
    code_sha256,
    different_training,
    learned_with,
    plain,
    versions,
)
from cwps_jax.recorded import counted, measured
from cwps_jax.report.costs import show_costs
from cwps_jax.report.draws import draw_folders
from cwps_jax.report.metrics import check_packages, open_writers
from cwps_jax.report.progress import RunProgress
from cwps_jax.report.results import write_json
from cwps_jax.rounds import learn_again, settled
from cwps_jax.saved import PRETRAINED, forget, saves_of_task
from cwps_jax.store.index import compared_name
from cwps_jax.store.lock import locked
from cwps_jax.store.pool import Pool
from cwps_jax.store.together import index_sha256
from cwps_jax.train.saves import Saving
from cwps_jax.train.trainer import Trainer


def learn(
    config: RunConfig,
    workdir: pathlib.Path,
    console: Console,
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Learns every task of the config that is not in the workdir's pool yet, in each of the draws.

    Args:
        config: the config of the run.
        workdir: the folder of the run.
        console: the console for its messages.
        stopping: called after every step; when it returns True, the training is saved and the run ends.

    Raises:
        CwpsError: the config, the data or the workdir does not fit; nothing has been written in this case.
        Preempted: it has been asked to stop; the same call resumes.
    """
    check_packages(config.metrics)
    check_extra("report", "the report of a run")
    profiler = None
    if config.profile and distributed.first():
        profiler = Profiler(workdir / "profile", dtype=config.dtype, recomputes=config.remat)
    trainer = None  # its compiled steps serve all draws
    for draw, folder in draw_folders(config, workdir):
        if draw is not config:
            console.print(f"{folder.name}: seed {draw.seed}", highlight=False)
        with console.status("looking through the data"):
            made = (folder / "pool" / "index.json").exists()
            stored = Pool.open(folder / "pool").tasks if made else ()
            prepared = prepare(draw, trainer, profiler, stored)
        trainer = prepared.trainer
        _learn_draw(prepared, folder, console, stopping)
    if profiler:
        show_costs(profiler, console)


def _learn_draw(
    prepared: Prepared, workdir: pathlib.Path, console: Console, stopping: Callable[[], bool]
) -> None:
    """Pre-trains if need be, then learns one task after the other."""
    config, tasks = prepared.config, prepared.tasks
    pool = stored_pool(config, workdir)
    told = {name: _learned_with(prepared, name, config.method) for name in tasks}
    if pool is not None:
        for name in (set(pool.tasks) & set(tasks)) - set(config.relearn):
            check_task(name, pool.version(name).record, tasks[name], told[name])
    # Before anything is written: a file of weights that does not fit leaves no workdir behind.
    make_pool = pretrained_pool(prepared, workdir / "pool")
    _agree(prepared, told, workdir)
    prepared.trainer.parallel.connect()

    def make_workdir() -> None:
        workdir.mkdir(parents=True, exist_ok=True)
        _write_config(config, pool, workdir)

    distributed.by_first(f"{workdir} is made", make_workdir, seen=lambda _: workdir.is_dir())
    source_epochs = config.source_epochs * (prepared.source is not None)
    again = sum(prepared.settings[name][config.method].epochs for name in tasks)
    epochs = source_epochs + sum(map(prepared.epochs, tasks)) + (config.rounds - 1) * again
    # Of many processes the first one writes.
    writers = open_writers(config.metrics, workdir, plain(config)) if distributed.first() else ()
    with RunProgress(writers, epochs, console) as progress:
        saving = _saving(config, workdir, stopping, progress)
        for name in config.overrides:
            if name not in (*tasks, config.source):
                progress.say(f"config.overrides.{name}: not among the tasks of this run")
        for name in tasks:
            _tell(prepared, name, progress)
        if pool is None:
            with contextlib.ExitStack() as held:
                lock = locked(workdir / ".pretraining", "this run's pre-trained model is being trained", 0)
                distributed.by_first(f"{workdir} is locked", lambda: held.enter_context(lock))
                pool = make_pool(functools.partial(progress.epoch, config.source), saving)
            if prepared.source is not None:
                reached = pool.index.pretrained_record["accuracy"]
                progress.say(f"pre-trained model: {config.source}, accuracy {reached:.3f}")
        else:
            forget(saving, PRETRAINED)  # a run that was killed has left it
            progress.skip(source_epochs)
        for name in tasks:
            if distributed.largest(stopping()):
                raise Preempted(f"stopped before {name} began; the same command resumes with it")
            if not _learn_unless_stored(prepared, name, pool, progress, saving):
                _know_capacities(prepared.trainer, pool.version(name).record)
                forget(saving, name)  # a run that was killed has left it
                before = pool.version(name).record.get(KEY)
                other = different_training(before, told[name]) if before else ""
                how = f"; it was learned with other settings: {other}" if other else ""
                progress.say(f"{name} is in the pool already: skipped{how}")
                progress.skip(prepared.epochs(name))
                continue
            _write_config(config, pool, workdir)
            if prepared.cache and config.rounds == 1:
                prepared.cache.clear()  # the next task needs the room, and none comes back to these images
        for number in range(2, config.rounds + 1):
            for name in tasks:
                if distributed.largest(stopping()):
                    raise Preempted(
                        f"stopped before round {number} of {name}; the same command resumes with it"
                    )
                if not learn_again(prepared, name, pool, progress, number, workdir, saving):
                    _know_capacities(prepared.trainer, pool.version(name).record)
                _write_config(config, pool, workdir)
            if number < config.rounds and settled(pool, tasks, number):
                progress.say(
                    f"round {number} found no better model: a further one would learn the same again"
                )
                progress.skip((config.rounds - number) * again)
                break


def _saving(
    config: RunConfig, workdir: pathlib.Path, stopping: Callable[[], bool], progress: RunProgress
) -> Saving | None:
    """Returns the folder and the times of saving; None if the run never saves."""
    if not config.save_minutes:
        return None

    def say(line: str, epochs: int) -> None:
        progress.say(line)
        progress.skip(epochs)

    return Saving(workdir / "saves", config.save_minutes, stopping, say)


def _know_capacities(trainer: Trainer, record: Mapping[str, Any]) -> None:
    """Restores the array sizes of stored trainings, so that later tasks compile as if these had run here."""
    for one in (*record.get("compared", {}).values(), record):
        if one.get("capacity"):
            trainer.network.know_capacity(one["capacity"])


def _learn_unless_stored(
    prepared: Prepared, name: str, pool: Pool, progress: RunProgress, saving: Saving | None
) -> bool:
    """Learns a task unless the pool has it by now; returns whether it has been learned."""

    def wanted() -> bool:
        return name not in pool.tasks or name in prepared.config.relearn

    if not wanted():
        return False
    with pool.learning(name):
        if not wanted():
            return False
        _learn_task(prepared, name, pool, progress, saving)
    return True


def _learn_task(
    prepared: Prepared, name: str, pool: Pool, progress: RunProgress, saving: Saving | None
) -> None:
    """Trains a task by the compared methods, then learns it by the run's own."""
    config, task, trainer = prepared.config, prepared.tasks[name], prepared.trainer
    model = prepared.make_model(task.classes or 0)
    observe = functools.partial(progress.epoch, name)
    (_, settings), *others = prepared.settings[name].items()
    compared = {}
    for method, own in others:
        kept = compared_name(name, method)
        if kept in pool and name not in pool.tasks:  # of a run that was interrupted
            progress.skip(own.epochs)
            compared[method] = dict(pool.version(kept).record)
            _know_capacities(trainer, compared[method])
            continue
        told = _learned_with(prepared, name, method)
        saves = saves_of_task(saving, pool, name, model, told)
        trained, stored, variables = train_task(pool, model, task, own, trainer, observe, name, saves)
        record = measured(trained, variables, model, task, own, trainer)
        compared[method] = {**record, **counted(pool.layout, stored)}
        if config.keep_compared:
            record[KEY] = told
            pool.add_stored(kept, trained.method, stored, record, compared=True)
    notes = {
        "training_images": len(task.train),
        "compared": compared,
        KEY: _learned_with(prepared, name, config.method),
    }
    learned = learn_task(
        pool,
        name,
        model,
        task,
        config=settings,
        trainer=trainer,
        observe=observe,
        notes=notes,
        relearn=name in config.relearn,
        checkpoints=saving,
    )
    beside = "".join(f", {method} {row['accuracy_when_learned']:.3f}" for method, row in compared.items())
    progress.say(f"{name}: {config.metric} {learned.metric:.3f}{beside}, keeps {learned.params_ratio:.3f}x")
    for one in learned.record.get("curve", ()):
        share, reached = one["byte_ratio"], one["validation_accuracy"]
        progress.say(f"{name}: {share:.4f}x of the bytes, validation {reached:.3f}{', kept' * one['kept']}")


def _learned_with(prepared: Prepared, name: str, method: str) -> dict[str, Any]:
    settings = prepared.settings[name][method]
    return learned_with(name, prepared.tasks[name], settings, prepared.config.dtype)


def _agree(prepared: Prepared, told: Mapping[str, Any], workdir: pathlib.Path) -> None:
    """Raises CwpsError if processes differ in anything on which a run depends."""
    if not distributed.many():
        return
    source = prepared.source
    pretraining = {"source's": source.train.fingerprint} if source else origin(prepared.config)
    distributed.agree(
        "at the start",
        {
            **{f"config.{key}": value for key, value in plain(prepared.config).items()},
            **{f"the version of {name}": version for name, version in versions().items()},
            "the code of cwps_jax": code_sha256(),
            "the data or weights of the pre-trained model": pretraining,
            **{f"the data of {name}": one["fingerprints"] for name, one in told.items()},
            "the pool": index_sha256(workdir / "pool"),
        },
    )


def _write_config(config: RunConfig, pool: Pool | None, workdir: pathlib.Path) -> None:
    """Writes the config of this run, and the settings and data of each task in the pool."""
    if not distributed.first():
        return
    stored = {name: pool.version(name).record.get(KEY) for name in pool.tasks} if pool else {}
    values = {"config": plain(config), "versions": versions(), "tasks": stored}
    write_json(workdir / "config.json", values)


def _tell(prepared: Prepared, name: str, progress: RunProgress) -> None:
    """Logs a task's data, and the settings that were fitted to them."""
    config, task = prepared.config, prepared.tasks[name]
    progress.say(f"{name}: {task.note}")
    given, used = config.for_task(name), prepared.settings[name][config.method]
    for key in ("batch_size", "epochs"):
        if getattr(used, key) != getattr(given, key):
            progress.say(
                f"{name}: config.{key} = {getattr(used, key)} instead of {getattr(given, key)}, for "
                f"{len(task.train)} training images"
            )
