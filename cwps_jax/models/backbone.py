"""The description of a named backbone."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from cwps_jax.errors import CwpsError
from cwps_jax.models.conversion import Table


@dataclasses.dataclass(frozen=True)
class Backbone:
    """One named backbone.

    Attributes:
        module: the family's Linen class; its fields are the options.
        settings: the values of the fields that define this backbone.
        parameters: number of parameters, head included, with `num_classes` classes.
        tables: the sets of key names of its weights files; export writes the first.
        image_size: side, in pixels, of the images for published weights.
        num_classes: classes of published weights.
    """

    module: type[nn.Module]
    settings: Mapping[str, Any]
    parameters: int
    tables: tuple[Table, ...]
    image_size: int = 224
    num_classes: int = 1000

    def create(self, num_classes: int, **options: Any) -> nn.Module:
        """Returns the module with a head of `num_classes`.

        Raises:
            CwpsError: an option that the family does not have.
        """
        hidden = {"num_classes", "parent", "name", *self.settings}
        known = [one.name for one in dataclasses.fields(self.module) if one.name not in hidden]
        for option in options:
            if option not in known:
                raise CwpsError(
                    f"{self.module.__name__} has no option {option!r}; it has {', '.join(sorted(known))}"
                )
        return self.module(num_classes=num_classes, **self.settings, **options)
