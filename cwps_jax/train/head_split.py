"""A forward pass in two: up to the head, a program that tasks of one backbone share, and from the head on."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Var, jaxpr_as_fun

from cwps_jax.core.trees import Tree

Before = Callable[[Tree, jax.Array], list[jax.Array]]
After = Callable[[Tree, Tree, list[jax.Array]], Any]


def split_at_head(
    forward: Callable[[Tree, Tree, jax.Array], Any], head: Tree, rest: Tree, images: jax.Array
) -> tuple[Before, After] | None:
    """Returns two functions that together compute a third, the first one without the head's parameters.

    ``forward(head, rest, images)`` is ``after(head, rest, before(rest, images))``, up to rounding: what it
    computes from images is in `before` wherever the head has no part in it.

    Args:
        forward: of a plain model in inference mode.
        head: the head's parameters, arrays or `jax.ShapeDtypeStruct`.
        rest: all its other variables, the same.
        images: a batch of them, the same.

    Returns:
        `before`, whose results all have the batch as their leading axis, and `after`; None where there is no
        such cut.
    """
    traced, outputs = jax.make_jaxpr(forward, return_shape=True)(head, rest, images)
    jaxpr, structure = traced.jaxpr, jax.tree.structure(outputs)
    count = len(jax.tree.leaves(head))
    others, (batch,) = jaxpr.invars[count:-1], jaxpr.invars[-1:]
    of_head, of_images = set(jaxpr.invars[:count]), {batch}
    for equation in jaxpr.eqns:
        inputs = {one for one in equation.invars if isinstance(one, Var)}
        if inputs & of_head:
            of_head.update(equation.outvars)
        elif inputs & of_images:
            of_images.update(equation.outvars)
    # What is computed from images is done before the head, what is computed from parameters alone anew.
    early = [one for one in jaxpr.eqns if not of_head & set(one.outvars)]
    late = [one for one in jaxpr.eqns if not of_images & set(one.outvars)]
    wanted = [one for equation in late for one in equation.invars] + jaxpr.outvars
    handed: list[Any] = list(
        dict.fromkeys(one for one in wanted if isinstance(one, Var) and one in of_images)
    )
    if not handed or {one.aval.shape[:1] for one in handed} != {images.shape[:1]}:
        return None

    def program(inputs: list[Var], equations: list[Any], results: list[Any]) -> Callable[..., list[Any]]:
        unnamed = jaxpr.debug_info.with_unknown_names()
        part = jaxpr.replace(invars=inputs, eqns=equations, outvars=results, debug_info=unnamed)
        return jaxpr_as_fun(ClosedJaxpr(part, traced.consts))

    first = program([*others, batch], early, handed)
    second = program([*jaxpr.invars[:count], *others, *handed], late, jaxpr.outvars)

    def before(rest: Tree, images: jax.Array) -> list[jax.Array]:
        return first(*jax.tree.leaves(rest), images)

    def after(head: Tree, rest: Tree, handed: list[jax.Array]) -> Any:
        return jax.tree.unflatten(structure, second(*jax.tree.leaves((head, rest)), *handed))

    return before, after
