"""The one exception that a user is meant to read."""


class CwpsError(ValueError):
    """Something the user gave cannot work.

    The message is one line: what is wrong, where, and how to fix it. ``main`` prints it without a
    traceback and exits with status 2; research code can catch it as a ``ValueError``.
    """
