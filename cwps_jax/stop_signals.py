"""Signals that ask a program to end: SIGTERM, SIGINT, and SIGUSR1, with which Slurm may announce one.

The first signal asks the program to save and end. If it has not ended after `GRACE` seconds, it is ended at
once, which loses no more than a kill does: earlier saves are complete. A second signal ends it at once.
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
    """Handles these signals while its block runs, and gives a function that returns whether one has come.

    A thread waits for them, so that they are also noticed while the program compiles. Use it in a program's
    main thread.

    Args:
        exit_status: the exit status of a program that has not ended in time.
        grace: seconds until then; 0 if there is nothing to save.
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
                    _say(f"cwps: {name} again: ends at once")
                    os._exit(128 + number)
                asked.set()
                if grace:
                    _say(f"cwps: {name}: saves the training and ends; a second signal ends it at once")
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
    _say("cwps: stopped without a save: the same command resumes from the last save")
    os._exit(exit_status)


def _say(line: str) -> None:
    os.write(2, f"{line}\n".encode())  # not by Python's buffers: the process ends here
