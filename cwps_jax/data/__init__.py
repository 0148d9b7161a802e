"""Tasks: images and labels in three splits, and the batches made of them."""

from cwps_jax.data import digits, folders, hugging_face, tfds_source
from cwps_jax.data.cache import PixelCache
from cwps_jax.data.load import load_sources, load_task
from cwps_jax.data.source import ArraySource, Opener
from cwps_jax.data.task import TaskData
from cwps_jax.errors import CwpsError
from cwps_jax.settings import DataConfig

__all__ = ["EMBEDDED", "SOURCES", "ArraySource", "TaskData", "load", "load_sources", "opener"]

# Sources whose images have a size of their own, whatever the backbone.
EMBEDDED = ("digits",)
SOURCES: dict[str, Opener] = {
    "digits": Opener(digits.open_split, digits.split_names),
    "folders": Opener(folders.open_split, folders.split_names),
    "tfds": Opener(tfds_source.open_split, tfds_source.split_names),
    "huggingface": Opener(hugging_face.open_split, hugging_face.split_names),
}


def opener(settings: DataConfig) -> Opener:
    """Returns how the config's kind of data is opened. Raises CwpsError for a kind that is not known."""
    if settings.data not in SOURCES:
        raise CwpsError(f"config.data = {settings.data!r} is not known; choose one of {', '.join(SOURCES)}")
    return SOURCES[settings.data]


def load(settings: DataConfig, task: str, *, seed: int = 0, cache: PixelCache | None = None) -> TaskData:
    """Returns a task's data, see `load_task`."""
    return load_task(opener(settings), settings, task, seed=seed, cache=cache)
