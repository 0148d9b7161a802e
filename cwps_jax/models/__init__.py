"""Backbones in Linen, by name."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from cwps_jax.errors import CwpsError
from cwps_jax.models import resnet

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "resnet8": resnet.resnet8,
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
}


def create(name: str, num_classes: int, **options: Any) -> nn.Module:
    """Returns the backbone of that name with a linear head `head` of `num_classes`.

    Raises:
        CwpsError: no backbone of that name.
    """
    if name not in BACKBONES:
        raise CwpsError(f"backbone {name!r} is not known; choose one of {', '.join(sorted(BACKBONES))}")
    return BACKBONES[name](num_classes=num_classes, **options)
