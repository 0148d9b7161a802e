"""Many processes, one program: they start together, do the same, and process 0 alone writes.

JAX's own runtime connects them. Other messages than the arrays of a step go through its coordinator, as short
texts, and every wait there has a time limit. A process that is lost is found by the coordinator's heartbeat,
and JAX then ends the others itself, wherever they are: nothing of Python runs then. Everything here does
nothing in particular where there is one process.
"""

import contextlib
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
from jax._src import distributed as runtime  # the coordinator's texts have no public door

from cwps_jax.errors import CwpsError, ProcessLost

START_SECONDS = 300  # in which all processes have to come
HEARTBEAT_SECONDS = 60  # after which a process that is silent is lost
WAIT_SECONDS = 1800  # for a process that lives, but is slower: it may have to read its data first
SEEN_SECONDS = 120  # in which a shared file system shows what process 0 wrote
LEAVE_SECONDS = 5  # in which the others hear of an error, if they listen
LOOK_MILLISECONDS = 1000  # between two looks at whether another process has failed
SHOWN = 3  # values that differ, in one line


class Carrier(Protocol):
    """Brings what process 0 has written to where the others see it, where no file system does."""

    def push(self) -> None:
        """Sends what process 0 has written."""

    def push_soon(self) -> None:
        """Begins to."""

    def pull(self) -> None:
        """Fetches what process 0 has sent."""


_FAILED = "cwps/failed/"
_carrier: Carrier | None = None
_answered: list[str] = []  # what this process told that the coordinator still keeps
_turns = itertools.count()  # every process does the same in the same order, so that numbers name it


def start(coordinator: str = "", processes: int = 0, process: int = 0, seconds: int = START_SECONDS) -> None:
    """Connects this process with the others; call it before anything touches a device.

    Args:
        coordinator: "host:port" of process 0, the same for all; "" where JAX finds the cluster by itself: on
            TPU, under Slurm, Open MPI and Kubernetes.
        processes: how many there are.
        process: which of them this is, from 0.
        seconds: in which all have to come. If they do not, this process says so and ends with status 2: the
            runtime cannot be called off.

    Raises:
        CwpsError: JAX finds no cluster, or the runtime cannot be started.
    """
    given: dict[str, Any] = {
        "coordinator_address": coordinator,
        "num_processes": processes,
        "process_id": process,
    }
    where = f"coordinator {coordinator}" if coordinator else "the coordinator that JAX found"

    def too_late() -> None:
        text = (
            f"cwps: {where}: not all processes came within {seconds} s; look whether process 0 runs there, "
            "its port is open, and all the others were started"
        )
        print(text, file=sys.stderr, flush=True)
        os._exit(2)

    # A signal to this program stays what it is without many processes; the runtime would catch SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    limit = threading.Timer(seconds, too_late)
    limit.daemon = True
    limit.start()
    try:
        jax.distributed.initialize(
            **(given if coordinator else {}),
            cluster_detection_method="deactivate" if coordinator else None,
            initialization_timeout=seconds + 60,  # its own end would be an abort
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except ValueError as error:
        if coordinator:
            raise CwpsError(f"--coordinator={coordinator}: {error}; give HOST:PORT of process 0") from error
        raise CwpsError(
            "--distributed: JAX finds no cluster here (TPU, Slurm, Open MPI, Kubernetes); give "
            "--coordinator=HOST:PORT --processes=N --process=I"
        ) from error
    except RuntimeError as error:
        raise CwpsError(
            f"{where}: {_one_line(error)}; give each process a number of its own, and a port that is free"
        ) from error
    finally:
        limit.cancel()


def many() -> bool:
    """Whether there are other processes."""
    return runtime.global_state.client is not None and runtime.global_state.num_processes > 1


def process() -> int:
    """Returns the number of this process, 0 of the only one."""
    return runtime.global_state.process_id if many() else 0


def processes() -> int:
    """Returns how many processes there are."""
    return runtime.global_state.num_processes if many() else 1


def first() -> bool:
    """Whether this is process 0, or the only one: the one that writes."""
    return process() == 0


def by_first(
    what: str, action: Callable[[], str | None], seen: Callable[[str], bool] = lambda told: True
) -> str:
    """Lets process 0 alone do something, and returns what it tells of it, in all processes.

    Args:
        what: is done, for the error: "birds is stored".
        action: what process 0 does; it may return a text.
        seen: whether another process sees what process 0 did, by what it told; asked until it does.

    Raises:
        CwpsError: process 0 failed, in all processes; or another one does not see what it did.
    """
    if not many():
        return _sent(action)
    key = f"cwps/{next(_turns)}"
    if first():
        try:
            told = _sent(action)
        except Exception as error:
            _client().key_value_set_bytes(key, json.dumps({"error": _one_line(error)}).encode())
            raise
        _client().key_value_set_bytes(key, json.dumps({"told": told}).encode())
        return told
    answer = json.loads(_read(key, 0, what))
    if "error" in answer:
        raise CwpsError(f"process 0: {answer['error']}")
    told, until = answer["told"], time.monotonic() + SEEN_SECONDS
    while not seen(told):
        if _carrier:
            _carrier.pull()
            if seen(told):
                break
        if time.monotonic() > until:
            raise CwpsError(
                f"process {runtime.global_state.process_id} does not see that {what}, which process 0 wrote "
                f"{SEEN_SECONDS} s ago; name a --workdir on a file system that all hosts share"
            )
        time.sleep(0.1)
    return told


@contextlib.contextmanager
def carried(carrier: Carrier) -> Iterator[None]:
    """Lets a carrier bring what process 0 writes to the others, and to where the run goes on from.

    Args:
        carrier: asked after each action of `by_first` and by `push_soon`, while the block runs.
    """
    global _carrier
    _carrier = carrier
    try:
        yield
    finally:
        _carrier = None


def push_soon() -> None:
    """Begins to bring what process 0 has written to where the others see it, if something has to."""
    if _carrier and first():
        _carrier.push_soon()


def _sent(action: Callable[[], str | None]) -> str:
    told = action() or ""
    if _carrier:
        _carrier.push()
    return told


def agree(when: str, values: Mapping[str, Any]) -> None:
    """Raises CwpsError, in every process, where processes differ in what has to be the same for all.

    Args:
        when: at which point, for the error: "at the start".
        values: {what it is: plain JSON}; where it is long, a digest of it.
    """
    own = json.dumps(values, sort_keys=True).encode()
    told = [json.loads(one) for one in exchanged(own, f"it is compared {when}")]
    for process, theirs in enumerate(told):
        differing = [name for name in {**told[0], **theirs} if told[0].get(name) != theirs.get(name)]
        if differing:
            names = ", ".join(differing[:SHOWN])
            more = f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
            raise CwpsError(
                f"process {process} differs from process 0 {when} in: {names}{more}; start all processes "
                "with the same command, code, packages and data"
            )


def largest(value: int) -> int:
    """Returns the largest of all processes' values; all of them ask at the same place."""
    return max(map(int, exchanged(str(int(value)).encode(), "all are asked")))  # of a bool, too


def exchanged(value: bytes, what: str) -> list[bytes]:
    """Returns what each process gave, in their order; all of them ask at the same place.

    Args:
        value: this process's; through the coordinator's memory, so a few megabytes at most.
        what: is done there, for the error: "all are asked".
    """
    if not many():
        return [value]
    keys = [f"cwps/{turn}/{one}" for turn in [next(_turns)] for one in range(processes())]
    _client().key_value_set_bytes(keys[process()], value)
    told = [_read(key, one, what) for one, key in enumerate(keys)]
    # All have written this one: they have read the one before.
    while _answered:
        _client().key_value_delete(_answered.pop())
    _answered.append(keys[process()])
    return told


def fail(line: str, status: int) -> None:
    """Tells the other processes of an error, for which this one is about to end.

    Those that wait for it end by it, too. Where some do not listen within seconds, because they are in the
    middle of a step, this process ends at once, and its heartbeat tells them: the runtime's own end would
    wait for them.

    Args:
        line: the error.
        status: with which this process ends.
    """
    if not many():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    client = _client()
    with contextlib.suppress(RuntimeError):  # the error that counts is told already
        client.key_value_set(f"{_FAILED}{runtime.global_state.process_id}", line)
        client.wait_at_barrier("cwps/leaving", LEAVE_SECONDS * 1000)
        jax.distributed.shutdown()
        return
    os._exit(status)


def stop() -> None:
    """Waits until all processes have come here, and disconnects them."""
    if many():
        agree("at the end", {})
        jax.distributed.shutdown()


def _client() -> Any:
    return runtime.global_state.client


def _read(key: str, process: int, what: str) -> bytes:
    """Returns what another process told, as soon as it is there."""
    until = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return _client().blocking_key_value_get_bytes(key, LOOK_MILLISECONDS)
        except RuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise ProcessLost(
                    f"process 0 is lost ({_one_line(error)}); see its own last lines, then start all "
                    "processes again by the same command"
                ) from error
        for path, line in _client().key_value_dir_get(_FAILED):
            raise CwpsError(f"process {path.rsplit('/', 1)[1]}: {line}")
        if time.monotonic() > until:
            raise ProcessLost(
                f"process {process} did not come within {WAIT_SECONDS} s to where {what}; see its own last "
                "lines, then start all processes again by the same command"
            )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
