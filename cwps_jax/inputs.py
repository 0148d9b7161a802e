"""`Inputs`: a model that is called with other arrays of a batch than its image alone."""

from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
from flax.core import unfreeze

from cwps_jax.errors import CwpsError
from cwps_jax.tracing import mode


class Inputs(nn.Module):
    """A Linen model that takes several arrays of a batch, nested ones, or arguments by name.

    Use it wherever a model is expected. Its parameters have the paths of the plain model, so `Pool.effective`
    returns variables with which the plain model can be applied.

    Attributes:
        model: the plain model.
        arguments: a tuple for positional arguments, or a dict for keyword arguments. Each argument is the
            name of an array of the batch, or a nest (dicts, tuples) of such names, for which the model gets
            the same nest of arrays. One of the names is "image".

    Examples:
        >>> import jax.numpy as jnp
        >>> class Both(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, *, pixels, sizes):
        ...         return nn.Dense(2, name="head")(jnp.concatenate([pixels, sizes], axis=-1))
        >>> model = Inputs(Both(), {"pixels": "image", "sizes": "size"})
        >>> batch = {"image": jnp.ones((1, 4)), "size": jnp.ones((1, 3))}
        >>> model.init(jax.random.key(0), batch)["params"]["head"]["kernel"].shape
        (7, 2)
    """

    model: nn.Module
    arguments: Any

    def __call__(self, batch: Mapping[str, jax.Array], train: bool = False) -> Any:
        """Applies the plain model.

        Args:
            batch: the arrays that `arguments` names, each (batch, ...).
            train: whether the model is in training; passed under the name that its `__call__` uses.

        Returns:
            The outputs of the plain model.
        """
        assert self.scope is not None  # Linen calls it with a scope only
        given = jax.tree.map(lambda name: batch[name], unfreeze(self.arguments))
        by_place, by_name = ((), given) if isinstance(given, Mapping) else (given, {})
        by_name = {**by_name, **mode(self.model, train=train)}
        # A model of its own, not a part of this one: its modules have no other paths than without it.
        plain = self.model.clone(parent=None)
        keys = {name: self.make_rng(name) for name in self.scope.rngs}
        if self.is_initializing():
            output, changed = plain.init_with_output(keys, *by_place, **by_name)
        else:
            mutable = self.scope.mutable or []  # that gives what changed, too, and False would not
            output, changed = plain.apply(self.variables, *by_place, rngs=keys, mutable=mutable, **by_name)
        for collection, tree in changed.items():
            for name, value in tree.items():
                self.put_variable(collection, name, value)
        return output


def input_names(model: nn.Module) -> tuple[str, ...]:
    """Returns the names of the arrays that a model takes: only "image" except for `Inputs`."""
    return tuple(jax.tree.leaves(unfreeze(model.arguments))) if isinstance(model, Inputs) else ("image",)


def inputs_of(model: nn.Module, batch: Mapping[str, Any]) -> Any:
    """Returns what a model takes from a batch: its image, or a dict of arrays for `Inputs`."""
    if not isinstance(model, Inputs):
        return batch["image"]
    return {name: batch[name] for name in input_names(model)}


def check_inputs(model: nn.Module, names: Collection[str], where: str) -> None:
    """Raises CwpsError unless a batch has all arrays that a model takes, and one of them is the image.

    Args:
        model: the model.
        names: of the batch's arrays.
        where: the owner of the batch, for the message.
    """
    wanted = input_names(model)
    if isinstance(model, Inputs) and (isinstance(model.arguments, str) or set(map(type, wanted)) != {str}):
        raise CwpsError(
            f"cwps.Inputs(model, {model.arguments!r}): give a tuple or a dict of names of the data's arrays, "
            "such as ('image', 'mask')"
        )
    if "image" not in wanted:
        raise CwpsError(
            f"cwps.Inputs takes {', '.join(map(repr, wanted))} and no 'image': call one of the data's arrays "
            "so; the model's own argument may have any name, as in {'pixels': 'image'}"
        )
    missing = sorted(set(wanted) - set(names))
    if missing:
        raise CwpsError(
            f"{where} has no {missing[0]!r}, which cwps.Inputs gives to the model; it has "
            f"{', '.join(sorted(names))}"
        )
