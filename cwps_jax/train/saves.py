"""`Saves`: points of one task's training on disk, from which the same training resumes.

::

    folder/
      480/                  a point, by how many steps were taken; an Orbax checkpoint
        arrays/               the bytes of all its arrays, in one
        told/                 plain JSON: types and shapes, where it is, and what it belongs to

Orbax gives a checkpoint its name when all of it is written: what was being written when the process died has
no such name, and is removed by the next. The frozen trees and findings of the stages are not saved, because
they follow from the rest, see `Course.retraced`.
"""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from cwps_jax import distributed
from cwps_jax.errors import CwpsError, Preempted
from cwps_jax.train.course import Course, Point
from cwps_jax.train.finite import check_finite
from cwps_jax.train.joined import joined, parted
from cwps_jax.train.records import SoFar

KEPT = 2  # the newest, and the one before
ASKED = 20  # steps after which many processes ask each other whether to save: an answer takes a millisecond
_SAVE, _STOP = 1, 2
SHORT = 0.1  # of the time between saves: a stage that was shorter is not worth one at its end


@dataclasses.dataclass(frozen=True)
class Saving:
    """The folder and the times of saving the points of a training.

    Attributes:
        folder: the folder; each task and method has a folder in it.
        minutes: minutes from one save to the next, above 0. A save copies the trained arrays to the host. A
            killed process has to repeat half of this time on average.
        stopping: called after every step; when it returns True, the point is saved and `Preempted` is raised.
        say: called with a line of text when a training resumes, and with the number of its finished epochs.
    """

    folder: str | os.PathLike[str]
    minutes: float = 10.0
    stopping: Callable[[], bool] = lambda: False
    say: Callable[[str, int], None] = lambda line, epochs: logging.info(line)

    def __post_init__(self) -> None:
        if not self.minutes > 0:
            raise CwpsError(f"Saving(minutes={self.minutes}): must be above 0")


class Saves:
    """The saved points of one task's training by one method.

    Args:
        saving: the folder and the times.
        name: name of the folder of this training in `saving.folder`.
        belongs: the settings and data that a point must have to be resumed; plain JSON.
        beside: other data that the training reads and that other runs may change meanwhile; plain JSON.
        differences: from two mappings of plain JSON to a line about their differences.
    """

    def __init__(
        self,
        saving: Saving,
        name: str,
        belongs: Mapping[str, Any],
        beside: Mapping[str, Any],
        differences: Callable[[Mapping[str, Any], Mapping[str, Any]], str],
    ) -> None:
        folder = epath.Path(saving.folder) / name
        self.folder = folder if "://" in str(folder) else folder.absolute()  # as Orbax wants it
        self._saving = saving
        self._name = name
        self._belongs = belongs
        self._beside = beside
        self._differences = differences
        self._manager: Any = None
        self._unsent = False
        self._last = time.monotonic()
        self._steps = self._answer = 0

    def wanted(self, *, between_stages: bool = False) -> bool:
        """Whether the present point is to be saved; this is decided only here.

        If there are several processes, all save at the same step as soon as one of them has to.

        Args:
            between_stages: whether a stage has just ended.
        """
        self._steps += 1
        if distributed.many() and not between_stages and self._steps % ASKED:
            return False
        seconds = 60 * self._saving.minutes * (SHORT if between_stages else 1)
        writing = self._manager is not None and self._manager.is_saving_in_progress()  # the next would wait
        if self._unsent and not writing:
            distributed.push_soon()
            self._unsent = False
        due = _SAVE * (time.monotonic() - self._last >= seconds and not writing)
        self._answer = distributed.largest(_STOP if self._saving.stopping() else due)
        return self._answer > 0

    def save(self, course: Course, point: Point) -> None:
        """Copies a point, which is written in the background.

        Raises:
            Preempted: the process has been asked to end; the point is on the disk.
            FloatingPointError: a trained array is not finite; nothing is written.
            CwpsError: it cannot be written.
        """
        import orbax.checkpoint as ocp

        check_finite({"own": point.state.own})
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves((point.ended, point.state))]
        steps = sum(map(course.steps_of, range(point.stage))) + point.steps
        told = {
            "stage": point.stage,
            "steps": point.steps,
            "ended": len(point.ended),
            "so_far": dataclasses.asdict(point.so_far),
            "leaves": [[leaf.dtype.name, leaf.shape] for leaf in (*leaves, point.rows)],
            "belongs": self._belongs,
            "beside": self._beside,
            "devices": _devices(),
            "at": time.time(),
        }
        arrays = ocp.args.PyTreeSave({"bytes": joined([*leaves, point.rows])})
        saved = ocp.args.Composite(arrays=arrays, told=ocp.args.JsonSave(told))
        stopping = self._answer == _STOP

        def write() -> None:
            with self._readable_errors():
                self._open().save(steps, args=saved, force=True)
                if stopping:
                    self._open().wait_until_finished()

        if stopping:
            distributed.by_first("the training is saved", write)
        elif distributed.first():
            write()
        self._unsent = not stopping and distributed.first()
        self._last = time.monotonic()
        if stopping:
            where = f"{self._name}: stopped {_where(course, point)}, and saved in {self.folder}"
            raise Preempted(f"{where}; the same command resumes from there")

    def newest(self, course: Course) -> Point | None:
        """Returns the newest complete point, or None if there is none; says which.

        Raises:
            CwpsError: it belongs to another training than the course's.
        """
        import orbax.checkpoint as ocp

        def there() -> str:
            return json.dumps(sorted(self._open().all_steps()) if self.folder.exists() else [])

        for steps in reversed(json.loads(distributed.by_first("saved trainings are looked for", there))):
            wanted = ocp.args.Composite(arrays=ocp.args.PyTreeRestore(), told=ocp.args.JsonRestore())
            try:
                found = self._open().restore(steps, args=wanted)
                told = found.told
                *leaves, rows = parted(found.arrays["bytes"], told["leaves"])
            except (ValueError, KeyError, OSError) as error:
                line = f"{self.folder / str(steps)}: damaged, so that an older one is used ({_line(error)})"
                self._saving.say(line, 0)
                if distributed.first():
                    self._open().delete(steps)
                continue
            if self._of_another(told):
                distributed.largest(0)  # all have read it
                self.remove()
                return None
            point = course.retraced(leaves, told["ended"])
            point = dataclasses.replace(
                point,
                stage=told["stage"],
                steps=told["steps"],
                rows=rows,
                so_far=SoFar(**told["so_far"]),
            )
            self._tell(course, point, told)
            return point
        return None

    def remove(self) -> None:
        """Removes all points: the training is stored elsewhere."""
        self.close()
        if distributed.first() and self.folder.exists():
            self.folder.rmtree()

    def close(self) -> None:
        """Waits for the point that is being written."""
        if self._manager:
            with self._readable_errors():
                self._manager.close()
            self._manager = None

    def _open(self) -> Any:
        import orbax.checkpoint as ocp

        if not self._manager:
            # Process 0 writes and each reads alone, since each has all of it: Orbax is told of no other.
            process = jax.process_index()
            alone = ocp.options.MultiprocessingOptions(
                primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"saves{process}"
            )
            if distributed.first():
                self.folder.mkdir(parents=True, exist_ok=True)
            arrays = ocp.PyTreeCheckpointHandler(use_compression=False, multiprocessing_options=alone)
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=KEPT,
                    cleanup_tmp_directories=distributed.first(),
                    create=False,
                    multiprocessing_options=alone,
                ),
                item_handlers={
                    "arrays": arrays,
                    "told": ocp.JsonCheckpointHandler(multiprocessing_options=alone),
                },
            )
        return self._manager

    def _of_another(self, told: Mapping[str, Any]) -> bool:
        """Whether the training has to start again, because other runs have changed the data that it reads.

        Raises:
            CwpsError: its settings or data have been changed.
        """
        found = self._differences(told["belongs"], self._belongs)
        if found:
            raise CwpsError(
                f"{self.folder}: has a training of {self._name} that was interrupted, and was another one: "
                f"{found}; give it what it had to go on with it, or remove this folder to start again"
            )
        if told["beside"] == self._beside:
            return False
        line = (
            f"{self._name}: starts again, because the pool has other tasks now than when it was interrupted"
        )
        self._saving.say(line, 0)
        return True

    def _tell(self, course: Course, point: Point, told: Mapping[str, Any]) -> None:
        """Says where the training resumes, in at most two lines."""
        epochs = course.first_epoch(point.stage) + (point.steps - len(point.rows)) // course.steps
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(told["at"]))
        where = f"{self._name}: goes on {_where(course, point)}, as it was saved at {at} in {self.folder}"
        self._saving.say(where, epochs)
        if told["devices"] != _devices():
            then = f"{self._name}: it was trained on {told['devices']}, and goes on on {_devices()}"
            self._saving.say(f"{then}: the result differs in its last bits", 0)

    @contextlib.contextmanager
    def _readable_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:  # what Orbax and TensorStore raise
            raise CwpsError(
                f"{self.folder}: the training of {self._name} cannot be saved here ({_line(error)}); make "
                "room, or name another place: the same command resumes from the last save"
            ) from error


def _where(course: Course, point: Point) -> str:
    if point.stage == len(course.stages):
        return "after its last step"
    epoch, step = divmod(point.steps, course.steps)
    stage = course.stages[point.stage].name
    epoch += course.first_epoch(point.stage) + 1
    return f"in its {stage} stage, epoch {epoch} of {course.epochs}, after step {step} of {course.steps}"


def _devices() -> str:
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
