"""Two frameworks, each in a process of its own, that take turns call by call on one machine."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Calls = Mapping[str, Callable[[], Any]]


class Worker:
    """A framework's process, which runs one call when it is told to.

    Args:
        command: of the process, which has to call `serve`.

    Attributes:
        told: what its process found while it made its calls ready.
    """

    def __init__(self, command: Sequence[str]) -> None:
        # Both share one GPU: JAX must not take all of its memory at the start.
        environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.told = self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"a worker stopped with code {self._process.wait()}")

    def run(self, call: str) -> float:
        """Returns the seconds of one call."""
        assert self._process.stdin
        print(call, file=self._process.stdin, flush=True)
        return self._answer()["seconds"]

    def stop(self) -> None:
        self._process.communicate("")


def serve(calls: Calls, told: Mapping[str, Any]) -> None:
    """Answers on standard output: first what was found, then the seconds of each call that is asked for."""
    print(json.dumps(told), flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        calls[line.strip()]()
        print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)


def both(program: str) -> dict[str, Worker]:
    """Returns the workers of this program, started with this process's own flags: "jax" and "torch"."""
    return {
        framework: Worker([sys.executable, program, *sys.argv[1:], "--worker", framework])
        for framework in ("jax", "torch")
    }
