"""A pool, or some of its tasks, as one folder for others: with a model card, and only the needed files."""

import os
import pathlib
import shutil
from collections.abc import Sequence

from cwps_jax.errors import CwpsError
from cwps_jax.serve.model_card import model_card
from cwps_jax.store.pool import PRETRAINED, Pool

CARD = "README.md"


def save_pretrained(pool: Pool, folder: str | os.PathLike[str], tasks: Sequence[str] = ()) -> Pool:
    """Writes tasks with everything that they need to a new folder: a pool with a model card.

    The folder is a pool like any other, so `Pool.open` loads it on any machine, and `Pool.merge` and
    `Pool.copy` bring its tasks into another pool of the same pre-trained model. Variables are the same to the
    bit. Rows that a task borrows from a task that is left out become its own.

    Args:
        pool: the stored models, which stay as they are.
        folder: the folder to make; it must not exist.
        tasks: names of tasks, or one name; all tasks by default, with the older versions that they need.

    Returns:
        The pool in the folder.

    Raises:
        CwpsError: the folder exists, a task is not in the pool, or a stored tree is damaged; in these cases
            the folder is not made.

    Example:
        >>> save_pretrained(pool, "birds", tasks="birds")  # doctest: +SKIP
        >>> pool = Pool.open("birds")  # doctest: +SKIP
    """
    target = pathlib.Path(folder)
    if os.path.lexists(target):
        raise CwpsError(f"{target}: is there already; name a folder that is to be made")
    names = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    for name in names:
        pool.version(name)
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        new = Pool.create(
            partial,
            pool.effective(PRETRAINED),
            pool.layout,
            backbone=pool.index.backbone,
            record=pool.index.pretrained_record,
        )
        if names:
            for name in names:
                pool.copy(name, new)
        else:
            new.merge(pool)
        (partial / CARD).write_text(model_card(new), encoding="utf-8")
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Pool.open(target)
