"""One run, of one process or of several, started and stopped: what `torture_runs.py` does again and again."""

import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import signal
import socket
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from rich.console import Console
from torture import Steps

from cwps_jax import distributed, models, run
from cwps_jax.config import run_config
from cwps_jax.errors import Preempted
from cwps_jax.stop_signals import stop_signals

SERVER = multiprocessing.get_context("forkserver")  # each process is born with JAX imported, and no device
TASKS = ("negative", "mirrored", "loops")
SECONDS = 0.5  # from one save to the next
HEARTBEAT_SECONDS = 5  # of the torture alone, so that a survivor does not wait for a minute each time
SURVIVES_SECONDS = 300  # in which the others have to end by themselves; more than that is a repair
PREEMPTED, ABORTED, STUCK = 42, 134, 1
ACTIONS = ("SIGTERM", "SIGKILL", "SIGKILL before a write")


class Small(nn.Module):
    """Two convolutions, a batch norm and a head: a step of it takes no time."""

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Conv(16, (3, 3), use_bias=False, dtype=self.dtype)(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, dtype=self.dtype)(x))
        x = nn.relu(nn.Conv(24, (3, 3), strides=2, dtype=self.dtype)(x))
        return nn.Dense(self.num_classes, name="head")(x.mean((1, 2)))


@dataclasses.dataclass(frozen=True)
class Topology:
    """How many processes, of how many fake devices each, and where they meet."""

    processes: int
    devices: int
    port: int = 0

    @classmethod
    def of(cls, text: str) -> "Topology":
        """Returns that of "8", one process, or of "2x4"."""
        processes, devices = map(int, f"1x{text}".split("x")[-2:])
        return cls(processes, devices)

    def met(self) -> "Topology":
        """Returns the same at a port that is free."""
        with socket.socket() as found:
            found.bind(("localhost", 0))
            return dataclasses.replace(self, port=found.getsockname()[1])

    def connect(self, process: int) -> None:
        """Connects a process with the others."""
        jax.config.update("jax_num_cpu_devices", self.devices)
        if self.processes > 1:
            distributed.HEARTBEAT_SECONDS = HEARTBEAT_SECONDS
            distributed.start(f"localhost:{self.port}", self.processes, process)


def learn(
    folder: str, cache: str, topology: Topology, process: int, tasks: int, last: int, told: Connection
) -> None:
    """Runs, or goes on with, the run in a folder; in a process of its own."""
    models.BACKBONES["small"] = models.Backbone(Small, {}, 4_000, ())
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    topology.connect(process)
    config = run_config(
        {
            "backbone": "small",
            "data": "digits",
            "source": "digits",
            "source_epochs": 1,
            "tasks": TASKS[:tasks],
            "compare": ("finetune",),
            "epochs": 3,
            "batch_size": 64,
            "learning_rate": 0.05,
            "budget": 0.4,
            "shots": 40,
            "save_minutes": SECONDS / 60,
            "cache_dir": cache,
        }
    )
    steps = Steps(last)
    with open(os.devnull, "w") as nowhere, stop_signals(PREEMPTED) as stopping:
        told.send("begins")
        try:
            run.learn(config, pathlib.Path(folder), Console(file=nowhere), stopping)
            distributed.stop()
        except Preempted:
            distributed.stop()
            sys.exit(PREEMPTED)
        except Exception as error:
            distributed.fail(str(error), ABORTED)
            raise
        told.send(steps.count)


@dataclasses.dataclass
class Ended:
    """How a process ended: its exit status, and how many times it wrote, where it came to its end."""

    status: int
    steps: int = 0


def started(
    folder: pathlib.Path,
    cache: str,
    topology: Topology,
    tasks: int,
    action: str = "",
    when: float = 0.0,
    victim: int = 0,
) -> Ended:
    """Starts the run of a folder, stops one of its processes, and returns how they ended.

    Args:
        folder: the run's.
        cache: folder of compiled programs.
        topology: of its processes.
        tasks: how many it has.
        action: one of `ACTIONS`, or "" to let it run.
        when: seconds after its begin, or the number of the step before which it is killed.
        victim: the process that is stopped; the first one, which alone writes, before a write.
    """
    last = int(when) if action == ACTIONS[2] else 0
    victim, topology = 0 if last else victim, topology.met()
    pipes = [SERVER.Pipe() for _ in range(topology.processes)]
    started = [
        SERVER.Process(
            target=learn, args=(str(folder), cache, topology, number, tasks, 0 if number else last, theirs)
        )
        for number, (_, theirs) in enumerate(pipes)
    ]
    for process, (_, theirs) in zip(started, pipes, strict=True):
        process.start()
        theirs.close()
    with contextlib.suppress(EOFError):  # killed before it had begun
        pipes[victim][0].recv()
    if action and not last:
        started[victim].join(when)
        if started[victim].exitcode is None:
            os.kill(started[victim].pid or 0, getattr(signal, action))
    started[victim].join()
    until = time.monotonic() + SURVIVES_SECONDS
    for process in started:
        process.join(max(0.0, until - time.monotonic()))
    if any(process.exitcode is None for process in started):
        for process in started:
            process.kill()
        return Ended(STUCK)
    statuses = {process.exitcode or 0 for process in started}
    if statuses == {0}:
        if victim:
            pipes[0][0].recv()
        return Ended(0, pipes[0][0].recv())
    if action == "SIGTERM" and PREEMPTED in statuses and len(statuses) > 1:
        return Ended(STUCK)  # all have to leave where all go on
    return Ended(started[victim].exitcode or max(statuses, key=abs))
