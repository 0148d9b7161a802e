"""The exceptions that a user is meant to read."""


class CwpsError(ValueError):
    """Something the user gave cannot work.

    The message is one line: what is wrong, where, and how to fix it. ``main`` prints it without a
    traceback and exits with status 2; research code can catch it as a ``ValueError``.
    """


class Preempted(Exception):
    """The process has been asked to end, and did so where it can go on.

    The message is one line: where. ``main`` prints it and exits with status 42; the same command goes on.
    """
