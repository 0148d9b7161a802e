"""Which arrays of a training are spread over the devices, and along which axis: an ordered list of rules."""

import math
from collections.abc import Collection

from jax.sharding import PartitionSpec

from cwps_jax.core.patterns import check_patterns, matches
from cwps_jax.errors import CwpsError

# (pattern over the paths of parameters, rule): the first one that matches counts.
Rules = tuple[tuple[str, ...], ...]
SPLIT, WHOLE = "split", "whole"


def check_rules(rules: Rules, paths: Collection[str] | None = None) -> None:
    """Raises CwpsError if it is not a list of (pattern, rule), or if a pattern matches nothing.

    Args:
        rules: the given rules.
        paths: the paths of all parameters; None if they are not known yet.
    """
    for one in rules:
        if len(one) != 2 or one[1] not in (SPLIT, WHOLE):
            raise CwpsError(
                f"config.shard: {one!r} is not a pattern over paths of parameters and 'split' or 'whole', as "
                "in (('head/*', 'whole'), ('*kernel', 'split'))"
            )
    if paths is not None:
        check_patterns([pattern for pattern, _ in rules], paths)


def spec_of(rules: Rules, path: str, shape: tuple[int, ...], devices: int, axis: str) -> PartitionSpec:
    """Returns how an array is spread: by the first rule that matches it; without one it is whole.

    Args:
        rules: see `Rules`.
        path: path of the array; arrays of an optimizer, an average or a parent end with the path of their
            parameter.
        shape: shape of the array.
        devices: number of devices.
        axis: name of the mesh's axis.

    Returns:
        The partition: along its longest axis whose size the number of devices divides, or whole if there is
        none.
    """
    found = (rule for pattern, rule in rules if matches(path, (pattern, f"*/{pattern}")))
    divided = [number for number, size in enumerate(shape) if size % devices == 0 and size > 0]
    if next(found, WHOLE) == WHOLE or not divided or math.prod(shape) == 0:
        return PartitionSpec()
    longest = max(divided, key=lambda number: shape[number])
    return PartitionSpec(*(axis if number == longest else None for number in range(len(shape))))
