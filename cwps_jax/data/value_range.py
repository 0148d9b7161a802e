"""Checks that decoded pixels have different values."""

from collections.abc import Sequence

import numpy as np

from cwps_jax.errors import CwpsError


def check_values(values: np.ndarray, others: Sequence[np.ndarray], image_bits: int, task: str) -> None:
    """Raises CwpsError if images decode to one value, or if the value of white in them is not known.

    Args:
        values: values of the training images, see `Scan`.
        others: values of the other splits' images.
        image_bits: `DataConfig.image_bits`.
        task: the task's name.
    """
    bits = image_bits or 16
    in_training = _highest(values)
    highest = max(in_training, *map(_highest, others), 0)
    needed = max(in_training.bit_length(), 8)
    if in_training >= 0 and needed < 16 and not image_bits:
        raise CwpsError(
            f"{task}: its 16-bit images have values up to {in_training:,} only: set "
            f"config.image_bits={needed} to make that white, or 16 if they are meant to be dark"
        )
    if highest >= 2**bits:
        raise CwpsError(
            f"{task}: its 16-bit images have values up to {highest:,}, more than {bits} bits hold: set "
            f"config.image_bits={highest.bit_length()}"
        )
    looked_at = values[values[:, 0] > 0]
    shown = looked_at[:, 1:] >> np.where(looked_at[:, :1] == 16, bits - 8, 0)
    if len(shown) and shown.min() == shown.max():
        raise CwpsError(
            f"{task}: every pixel of its {len(shown)} training images has the value {shown.min()} of 0 to "
            "255; store them as 8 bits that use this range"
        )


def _highest(values: np.ndarray) -> int:
    """Returns the highest value of the 16-bit images, -1 where there are none."""
    return int(values[values[:, 0] == 16, 2].max(initial=-1))
