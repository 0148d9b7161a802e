"""Labels matched by class names: splits may number classes differently; the training split counts."""

import unicodedata
from collections.abc import Sequence

import numpy as np

from cwps_jax.errors import CwpsError


def same_name(name: str) -> str:
    """Returns a name in one of its Unicode spellings; accents may be characters of their own in another."""
    return unicodedata.normalize("NFC", name)


def by_name(labels: np.ndarray, own: Sequence[str], training: Sequence[str], where: str) -> np.ndarray:
    """Returns a split's labels as numbers of the training classes.

    Args:
        labels: (n,), positions in `own`; other numbers stay as they are, and are refused by later checks.
        own: names of the split's classes.
        training: names of the training split's classes.
        where: name of the split in messages.

    Returns:
        (n,), positions in `training`.

    Raises:
        CwpsError: the split has a class that is not among the training classes.
    """
    numbers = {same_name(name): number for number, name in enumerate(training)}
    unknown = [name for name in own if same_name(name) not in numbers]
    if unknown:
        raise CwpsError(
            f"{where} has other classes than the training data: {', '.join(map(repr, unknown[:3]))}"
            f"{f' and {len(unknown) - 3} more' if len(unknown) > 3 else ''} "
            f"{'is' if len(unknown) == 1 else 'are'} not among its {len(training)} "
            f"({', '.join(map(repr, training[:3]))}{', ...' if len(training) > 3 else ''}); "
            "remove or rename the others"
        )
    positions = np.array([numbers[same_name(name)] for name in own], np.int64)
    known = (labels >= 0) & (labels < len(own))
    # A number that is no class of the split must not become one of the training data's.
    out_of_range = np.where(labels < 0, labels, np.maximum(labels, len(training)))
    return np.where(known, positions[np.where(known, labels, 0)], out_of_range)


def not_from_zero(numbers: Sequence[int]) -> str:
    """Returns the note about labels that are stored as other numbers than 0, 1, 2 and so on; "" for those."""
    if list(numbers) == list(range(len(numbers))):
        return ""
    return (
        f"labels are stored as {len(numbers)} numbers from {numbers[0]} to {numbers[-1]}, "
        "the order of the classes"
    )
