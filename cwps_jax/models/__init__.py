"""Backbones in Linen, by name: one file for each family."""

import fnmatch
from typing import Any

import flax.linen as nn

from cwps_jax.errors import CwpsError
from cwps_jax.models import densenet, efficientnet, mixer, resnet, squeezenet, vit
from cwps_jax.models.backbone import Backbone

BACKBONES: dict[str, Backbone] = {
    **densenet.BACKBONES,
    **efficientnet.BACKBONES,
    **mixer.BACKBONES,
    **resnet.BACKBONES,
    **squeezenet.BACKBONES,
    **vit.BACKBONES,
}


def find(name: str) -> Backbone:
    """Returns the description of a backbone. Raises CwpsError for an unknown name."""
    if name not in BACKBONES:
        raise CwpsError(f"backbone {name!r} is not known; choose one of {', '.join(sorted(BACKBONES))}")
    return BACKBONES[name]


def list_models(filter: str = "*") -> list[str]:
    """Returns the names of the backbones, sorted.

    Args:
        filter: a pattern with the wildcards `*`, `?` and `[...]`, as in "resnet*".

    Example:
        >>> list_models("vit*b16")
        ['vit_b16']
    """
    return sorted(fnmatch.filter(BACKBONES, filter))


def create_model(name: str, num_classes: int, **options: Any) -> nn.Module:
    """Returns the backbone of that name with a head of `num_classes`: a Linen module without variables.

    Args:
        name: one of `list_models()`.
        num_classes: outputs of the head.
        **options: the family's own, such as `dtype`, `remat`, `stochastic_depth`.

    Raises:
        CwpsError: there is no backbone of that name, or it does not have the option.
    """
    return find(name).create(num_classes, **options)


create = create_model  # as `models.create`
