"""Later rounds over the tasks: each is learned again with the others' newest models in its pool.

A better model is stored as the task's next version; versions refer only to older ones. Each finished task of
a round has a file in the workdir, ``rounds/<round>/<task>.json``, so a stopped run resumes in the same round.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from cwps_jax import distributed
from cwps_jax.learn import learn_task
from cwps_jax.prepare import Prepared
from cwps_jax.provenance import KEY, learned_with
from cwps_jax.report.progress import RunProgress
from cwps_jax.report.results import write_json
from cwps_jax.report.rounds import ROUND
from cwps_jax.saved import forget
from cwps_jax.store.pool import Pool
from cwps_jax.train.saves import Saving


def learn_again(
    prepared: Prepared,
    name: str,
    pool: Pool,
    progress: RunProgress,
    number: int,
    workdir: pathlib.Path,
    saving: Saving | None = None,
) -> bool:
    """Learns a stored task again, unless this round has done so already; returns whether it did.

    Args:
        prepared: the run.
        name: of the task.
        pool: the stored models.
        progress: shows the progress.
        number: number of the round, from 2.
        workdir: the run's.
        saving: where and when the run saves its trainings; this one is saved beside the round's notes.
    """
    done = workdir / "rounds" / str(number) / f"{name}.json"
    task, settings = prepared.tasks[name], prepared.settings[name][prepared.config.method]
    if saving:  # a folder of its own: the first round removes what is saved of a task that it finds stored
        saving = dataclasses.replace(saving, folder=done.parent / "saves")
    with pool.learning(name):
        before = pool.version(name)
        if done.exists() or before.record.get(ROUND, 1) >= number:
            progress.say(f"{name}: round {number} has been there already")
            progress.skip(settings.epochs)
            forget(saving, name)  # a run that was killed has left it
            return False
        told = {key: before.record[key] for key in ("training_images", "compared") if key in before.record}
        learned = learn_task(
            pool,
            name,
            prepared.make_model(task.classes or 0),
            task,
            config=settings,
            trainer=prepared.trainer,
            observe=functools.partial(progress.epoch, name),
            notes={**told, KEY: learned_with(name, task, settings, prepared.config.dtype), ROUND: number},
            relearn="better",
            checkpoints=saving,
        )
        distributed.by_first(
            f"round {number} of {name} is noted",
            lambda: _note(done, {"kept": learned.name, "validation_accuracy": learned.reached}),
            seen=lambda _: done.exists(),
        )
    was = before.record["validation_accuracy"]
    outcome = "stored" if learned.name != before.name else "not better, left out"
    progress.say(
        f"{name}: round {number}, validation {learned.reached:.3f} ({before.name} {was:.3f}): {outcome}"
    )
    return True


def settled(pool: Pool, tasks: Iterable[str], number: int) -> bool:
    """Whether a round has found no better model of any task: another one would learn the same again.

    Args:
        pool: the stored models.
        tasks: that are learned in rounds.
        number: number of the round, from 2.
    """
    return all(pool.version(name).record.get(ROUND, 1) < number for name in tasks)


def _note(done: pathlib.Path, values: Mapping[str, Any]) -> None:
    done.parent.mkdir(parents=True, exist_ok=True)
    write_json(done, values)
