"""`mix`: the arithmetic on which everything else is built."""

from typing import Any

import jax
import jax.numpy as jnp

from cwps_jax.core.channels import gates_by_leaf
from cwps_jax.core.trees import Tree, check_params, flatten, unflatten
from cwps_jax.errors import CwpsError


def mix(parent: Tree, child: Tree, gates: Tree) -> dict[str, Any]:
    """Returns the plain backbone's parameters, mixed from child and parent channel by channel.

    Soft gates mix, ``gate * child + (1 - gate) * parent``; boolean gates select, exact to the bit. Each
    output channel uses only its own slice of the kernel, so this equals running both networks and mixing the
    outputs of each layer channel by channel, at the price of one network (METHOD, stages 3 and 4).

    Args:
        parent: nested dict with the leaves of every gated layer; other leaves are ignored. No gradient flows
            into it.
        child: nested dict, the whole parameter tree of the backbone. Leaves without a gate (norms, head)
            are taken from it.
        gates: nested dict, one gate at the path of each kernel (see `channels`), float in [0, 1] or bool.

    Returns:
        Nested dict with the structure, shapes and dtypes of `child`.

    Raises:
        CwpsError: a tree is not a nested dict of parameters, or leaves are missing or have other shapes.

    Examples:
        >>> import jax.numpy as jnp
        >>> parent = {"kernel": jnp.zeros((2, 3))}
        >>> child = {"kernel": jnp.ones((2, 3))}
        >>> mix(parent, child, {"kernel": jnp.array([[True, False, True]])})["kernel"][0].tolist()
        [1.0, 0.0, 1.0]
    """
    for name, tree in (("parent", parent), ("child", child), ("gates", gates)):
        check_params(tree, f"mix(parent, child, gates): {name}")
    parents = flatten(parent)
    effective = flatten(child)
    if effective.keys() < parents.keys():
        lacking = min(parents.keys() - effective.keys())
        raise CwpsError(
            f"mix(parent, child, gates): the child has no {lacking}, which the parent has; a child is the "
            "whole tree: are the two in the other order?"
        )
    for path, gate in gates_by_leaf(gates, child).items():
        if path not in parents:
            raise CwpsError(f"{path}: the parent has no such leaf")
        if parents[path].shape != effective[path].shape:
            raise CwpsError(
                f"{path}: parent {parents[path].shape} and child {effective[path].shape} differ in shape"
            )
        own = effective[path]
        theirs = jax.lax.stop_gradient(parents[path])
        if gate.dtype == jnp.bool_:
            effective[path] = jnp.where(gate, own, theirs.astype(own.dtype))
        else:
            mixed = gate * own + (1 - gate) * theirs
            effective[path] = mixed.astype(own.dtype)
    return unflatten(effective)
