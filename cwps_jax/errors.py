"""The exceptions that a user is meant to read."""


class CwpsError(ValueError):
    """Something the user gave cannot work.

    The message is one line: what is wrong, where, and how to fix it. ``main`` prints it without a
    traceback and exits with status 2; research code can catch it as a ``ValueError``.
    """


class ProcessLost(CwpsError):
    """Another process of this run is gone; nothing that was given is wrong.

    ``main`` exits with the status of an abort, with which JAX ends the processes whose peer is lost, so that
    launchers start the run again.
    """


class Preempted(Exception):
    """The process has been asked to end, and did so where it can go on.

    The message is one line: where. ``main`` prints it and exits with status 42; the same command goes on.
    """
