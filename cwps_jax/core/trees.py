"""Nested dicts of arrays as flat dicts of paths ("Block_0/Conv_0/kernel"), and back."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cwps_jax.errors import CwpsError

Tree = Mapping[str, Any]
Flat = dict[str, Any]


def flatten(tree: Tree, prefix: str = "") -> Flat:
    """Returns the leaves of a nested mapping by their path, in sorted order of the keys.

    Args:
        tree: nested dict of arrays, such as {"conv": {"kernel": ...}}.
        prefix: text before every path.

    Returns:
        {"conv/kernel": ...}.
    """
    flat: Flat = {}
    for key in sorted(tree):
        path = f"{prefix}{key}"
        if isinstance(tree[key], Mapping):
            flat.update(flatten(tree[key], path + "/"))
        else:
            flat[path] = tree[key]
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested dict of leaves by their paths, the inverse of `flatten`.

    Args:
        flat: {path: leaf}.
    """
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def select(tree: Tree, paths: Iterable[str]) -> dict[str, Any]:
    """Returns the sub-tree that holds only `paths`. Raises KeyError for a path that is missing."""
    flat = flatten(tree)
    return unflatten({path: flat[path] for path in paths})


def unite(*trees: Tree) -> dict[str, Any]:
    """Returns one tree with the leaves of all; a later tree wins."""
    flat: Flat = {}
    for tree in trees:
        flat.update(flatten(tree))
    return unflatten(flat)


def map_with_path(function: Callable[[str, Any], Any], tree: Tree) -> dict[str, Any]:
    """Returns the tree with `function(path, leaf)` for every leaf."""
    return unflatten({path: function(path, leaf) for path, leaf in flatten(tree).items()})


def check_params(tree: Any, what: str) -> None:
    """Raises CwpsError unless this is a nested dict of parameters: not a whole model's variables."""
    if not isinstance(tree, Mapping):
        raise CwpsError(f"{what} is a {type(tree).__name__}: give a nested dict of parameters")
    if isinstance(tree.get("params"), Mapping):
        raise CwpsError(f"{what} is whole variables, {sorted(tree)}: give variables['params']")
