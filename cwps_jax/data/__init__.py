"""Tasks: arrays in three splits, and the batches made of them."""

from cwps_jax.data.digits import digits_task
from cwps_jax.data.task import TaskData
from cwps_jax.errors import CwpsError

SOURCES = {"digits": digits_task}


def load(source: str, task: str) -> TaskData:
    """Returns a task's data. Raises CwpsError for a source or task that is not known."""
    if source not in SOURCES:
        raise CwpsError(f"config.data = {source!r} is not known; choose one of {', '.join(SOURCES)}")
    return SOURCES[source](task)
