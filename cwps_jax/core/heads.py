"""Which leaves of a model's variables are its head's: its parameters, and norm statistics inside of it."""

from typing import Any

from cwps_jax.core.channels import Layout
from cwps_jax.core.trees import Tree, flatten, unflatten


def head_of(layout: Layout, variables: Tree) -> dict[str, Any]:
    """Returns what of a model's variables is the head's, in all collections.

    Args:
        layout: the model's layout.
        variables: {collection: tree}.
    """
    return _part(layout, variables, of_head=True)


def without_head(layout: Layout, variables: Tree) -> dict[str, Any]:
    """Returns what of a model's variables is not the head's, see `head_of`."""
    return _part(layout, variables, of_head=False)


def _part(layout: Layout, variables: Tree, *, of_head: bool) -> dict[str, Any]:
    flat = flatten(variables)
    return unflatten(
        {path: leaf for path, leaf in flat.items() if _in_head(layout, path.partition("/")[2]) == of_head}
    )


def _in_head(layout: Layout, path: str) -> bool:
    """Whether a leaf lies in a module that has parameters, and whose parameters are the head's alone."""
    names = path.split("/")[:-1]
    modules = [f"{'/'.join(names[:count])}/" for count in range(1, len(names) + 1)]
    holds = lambda module, paths: any(one.startswith(module) for one in paths)
    return any(
        holds(module, layout.head_paths) and not holds(module, layout.backbone_shapes) for module in modules
    )
