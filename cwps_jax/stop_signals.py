"""Signals that ask a program to end: SIGTERM, SIGINT, and SIGUSR1, with which Slurm may announce one.

The first asks it to save and leave; what has not left after `GRACE` seconds is ended where it is, which loses
no more than a kill does: what was saved before is whole. A second one ends it at once.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
GRACE = 25.0  # of the 30 seconds that clouds give


@contextlib.contextmanager
def stop_signals(exit_status: int, grace: float = GRACE) -> Iterator[Callable[[], bool]]:
    """Handles these signals while its block runs, and gives a function that says whether one has come.

    A thread waits for them, so that they are seen while the program compiles, too. For a program's main
    thread.

    Args:
        exit_status: with which a program ends that has not left in time.
        grace: seconds that it has; 0 where it has nothing to save.
    """
    asked, timers = threading.Event(), list[threading.Timer]()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch() -> None:
        for numbers in iter(lambda: os.read(reader, 64), b""):
            for number in numbers:
                if number == 0:
                    return
                if number not in SIGNALS:
                    continue
                name = signal.Signals(number).name
                if asked.is_set():
                    _say(f"cwps: {name} again: ended at once")
                    os._exit(128 + number)
                asked.set()
                if grace:
                    _say(f"cwps: {name}: saves what is being trained, and ends; another ends it at once")
                timers.append(threading.Timer(grace, _leave, (exit_status,)))
                timers[0].daemon = True
                timers[0].start()

    watcher = threading.Thread(target=watch, name="stop signals", daemon=True)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    handlers = {one: signal.signal(one, lambda number, frame: None) for one in SIGNALS}
    watcher.start()
    try:
        yield asked.is_set
    finally:
        signal.set_wakeup_fd(before)
        for one, handler in handlers.items():
            signal.signal(one, handler)
        os.write(writer, b"\0")
        watcher.join()
        for timer in timers:
            timer.cancel()
        os.close(reader)
        os.close(writer)


def _leave(exit_status: int) -> None:
    _say("cwps: stopped where it was: the same command goes on from what was saved last")
    os._exit(exit_status)


def _say(line: str) -> None:
    os.write(2, f"{line}\n".encode())  # not by Python's buffers: the process ends here
