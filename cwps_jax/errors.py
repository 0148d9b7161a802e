"""The exceptions whose messages are for the user."""


class CwpsError(ValueError):
    """Given settings, data or arguments cannot work.

    The message is one line: the mistake, its place, and how to fix it. ``main`` prints it without a traceback
    and exits with status 2; research code can catch it as a ``ValueError``.
    """


class ProcessLost(CwpsError):
    """Another process of this run is lost; the settings and data are not the cause.

    ``main`` exits with the status of an abort, with which JAX ends the processes whose peer is lost, so that
    launchers start the run again.
    """


class Preempted(Exception):
    """The process has been asked to end, and did so at a point from which it can be resumed.

    The message is one line about that point. ``main`` prints it and exits with status 42; the same command
    resumes.
    """
