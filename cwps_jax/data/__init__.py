"""Tasks: arrays in three splits, and the batches made of them."""

from collections.abc import Callable

from cwps_jax.data.digits import digits_task
from cwps_jax.data.folders import folder_task
from cwps_jax.data.task import TaskData
from cwps_jax.errors import CwpsError

# Sources whose images have a size of their own, whatever the backbone.
EMBEDDED = ("digits",)
SOURCES: dict[str, Callable[..., TaskData]] = {"digits": digits_task, "folders": folder_task}


def load(source: str, task: str, *, data_dir: str, image_size: int) -> TaskData:
    """Returns a task's data. Raises CwpsError for a source or task that is not known.

    Args:
        source: one of `SOURCES`.
        task: a task of it.
        data_dir: folder of sources that are not embedded.
        image_size: side of the images in pixels; 0 for that of an embedded source.
    """
    if source not in SOURCES:
        raise CwpsError(f"config.data = {source!r} is not known; choose one of {', '.join(SOURCES)}")
    return SOURCES[source](task, data_dir=data_dir, image_size=image_size)
