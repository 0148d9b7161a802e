"""The leaves of a model's variables that belong to its head: its parameters, and norm statistics in it."""

from collections.abc import Iterable
from typing import Any

from cwps_jax.core.channels import Layout
from cwps_jax.core.trees import Tree, flatten, unflatten


def head_of(layout: Layout, variables: Tree) -> dict[str, Any]:
    """Returns the part of a model's variables that belongs to the head, in all collections.

    Args:
        layout: the model's layout.
        variables: {collection: tree}.
    """
    return _part(layout, variables, of_head=True)


def without_head(layout: Layout, variables: Tree) -> dict[str, Any]:
    """Returns the part of a model's variables that does not belong to the head, see `head_of`."""
    return _part(layout, variables, of_head=False)


def _part(layout: Layout, variables: Tree, *, of_head: bool) -> dict[str, Any]:
    # A module is the head's if it has parameters, and all of them are the head's: norms need not have any.
    heads = _modules(layout.head_paths) - _modules(layout.backbone_shapes)
    flat = flatten(variables)
    below = {path: _modules([path.partition("/")[2]]) for path in flat}
    return unflatten({path: leaf for path, leaf in flat.items() if bool(below[path] & heads) == of_head})


def _modules(paths: Iterable[str]) -> set[str]:
    """Returns the paths of all modules around leaves."""
    split = (path.split("/") for path in paths)
    return {"/".join(names[:count]) for names in split for count in range(1, len(names))}
