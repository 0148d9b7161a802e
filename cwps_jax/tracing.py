"""The leaves that a Linen model's `init` would make, with their modules and order, and no computation."""

import dataclasses
import inspect
import re
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
from flax.core import unfreeze
from flax.traverse_util import flatten_dict

from cwps_jax.errors import CwpsError

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Owner:
    """A module that was called.

    Attributes:
        module: the module.
        shapes: {name: shape} of the leaves that it declares itself, as it sees them: without the axes that
            nn.scan and nn.vmap put in front.
    """

    module: nn.Module
    shapes: Mapping[str, Shape]


def mode(model: nn.Module, *, train: bool) -> dict[str, Any]:
    """Returns the keyword arguments by which a model's `__call__` learns whether it is in training.

    Examples:
        >>> mode(nn.Dropout(0.5), train=True)
        {'deterministic': False}
    """
    values = {"train": train, "training": train, "is_training": train, "deterministic": not train}
    names = inspect.signature(type(model).__call__).parameters
    return {name: value for name, value in values.items() if name in names}


def trace_parameters(model: nn.Module, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Owner]]:
    """Traces a Linen model's `init`.

    Args:
        model: any Linen module.
        *args: example inputs of its `__call__`, arrays or `jax.ShapeDtypeStruct`.
        **kwargs: further arguments of the model's `__call__`; not training where they do not say.

    Returns:
        The shapes of its parameters, a nested dict of `jax.ShapeDtypeStruct`, and {path of a module: `Owner`}
        in the order in which the modules are first called; the model's own path is "".

    Raises:
        CwpsError: a leaf of any collection with "/" in its name.
    """
    given = inspect.signature(type(model).__call__).bind_partial(model, *args).arguments
    defaults = {name: value for name, value in mode(model, train=False).items() if name not in given}
    kwargs = {**defaults, **kwargs}
    owners: dict[str, Owner] = {}

    def record(next_function, call_args, call_kwargs, context):
        module = context.module
        path = "/".join(module.path) if module.scope is not None else None
        if path is not None:
            owners.setdefault(path, Owner(module, {}))  # its place in the order
        result = next_function(*call_args, **call_kwargs)
        if path is not None:
            own = nn.meta.unbox(module.scope.variables().get("params", {}))
            shapes = {name: leaf.shape for name, leaf in own.items() if not isinstance(leaf, Mapping)}
            if shapes and shapes != owners[path].shapes:  # a wrapper may hold its model's own
                owners[path] = Owner(module, shapes)
        return result

    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    with nn.intercept_methods(record):
        variables = nn.meta.unbox(jax.eval_shape(lambda *inputs: model.init(keys, *inputs, **kwargs), *args))
    for path in flatten_dict(unfreeze(variables)):
        if "/" in "".join(path):
            raise CwpsError(
                f"{path[-1]}: a name with '/' in it cannot be told from a path; layers that make such names, "
                "as nn.WeightNorm and nn.SpectralNorm do, are not supported"
            )
    return unfreeze(variables["params"]), owners


def cast_types(model: nn.Module, example: jax.ShapeDtypeStruct) -> dict[str, Any]:
    """Returns {path: dtype} of the parameters that a model in training reads only to cast them to that type.

    Such a parameter may be given in that type to begin with: the model computes the same to the bit.

    Args:
        model: any Linen module.
        example: shape and type of a batch of one image.
    """
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    init = lambda images: nn.meta.unbox(model.init(keys, images, **mode(model, train=False)))
    other = dict(jax.eval_shape(init, example))
    params = other.pop("params")

    def forward(params, other, images):
        variables, told = {"params": params, **other}, mode(model, train=True)
        return model.apply(variables, images, mutable=list(other), rngs=keys, **told)

    program = jax.make_jaxpr(forward)(params, other, example).jaxpr
    uses: dict[int, set[Any]] = {id(variable): {None} for variable in program.outvars}
    for equation in program.eqns:
        # Only in the model itself: what a scan or a remat does with its arguments is not looked into.
        cast = equation.primitive.name == "convert_element_type"
        for variable in equation.invars:
            uses.setdefault(id(variable), set()).add(equation.params["new_dtype"] if cast else None)
    found = {}
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (keys_of, leaf), variable in zip(leaves, program.invars[: len(leaves)], strict=True):
        types = uses.get(id(variable), {None})
        if len(types) == 1 and None not in types and leaf.dtype not in types:
            found[jax.tree_util.keystr(keys_of, simple=True, separator="/")] = types.pop()
    return found


def parameter_depths(
    model: nn.Module, *args: Any, head: Collection[str] = (), **kwargs: Any
) -> dict[str, int]:
    """Returns how deep in a Linen model each leaf of its parameters is, from the order its modules run in.

    A block is a module with a number in its name ("block3", "stage2_block0", "Dense_1") at the top of the
    model or, where no module there has one, at the first level below that has. Blocks have the depths 1, 2,
    ... in the order of their first calls, with all that is in them; the head is one deeper than the last.
    Everything else has the depth of the block that ran before it: 0 for stem and embeddings, the last
    block's for a final norm. Leaves that a module declares itself, such as a class token, count from the
    beginning of its call. Blocks that nn.scan stacks are one module, and so have one depth.

    Args:
        model: any Linen module.
        *args: example inputs of its `__call__`, arrays or `jax.ShapeDtypeStruct`.
        head: paths of the head's leaves.
        **kwargs: further arguments of the model's `__call__`.

    Raises:
        CwpsError: a block that was not seen to run, such as one that nn.jit had compiled before.

    Examples:
        >>> import flax.linen as nn, jax.numpy as jnp
        >>> model = nn.Sequential([nn.Dense(4), nn.Dense(2)])
        >>> depths = parameter_depths(model, jnp.ones((1, 3)), head=["layers_1/kernel", "layers_1/bias"])
        >>> depths["layers_0/kernel"], depths["layers_1/kernel"]
        (1, 2)
    """
    shapes, owners = trace_parameters(model, *args, **kwargs)
    leaves = ["/".join(path) for path in flatten_dict(shapes)]
    modules = [path.split("/")[:-1] for path in leaves if path not in head]
    numbered = [[bool(re.search(r"\d", name)) for name in module] for module in modules]
    level = min((flags.index(True) for flags in numbered if any(flags)), default=0)
    blocks = {
        "/".join(module[: level + 1])
        for module, flags in zip(modules, numbered, strict=True)
        if any(flags[level : level + 1])
    }
    order: dict[str, int] = {}
    of_module: dict[str, int] = {}
    for path in owners:
        block = "/".join(path.split("/")[: level + 1])
        if block in blocks:
            of_module[path] = order.setdefault(block, len(order) + 1)
        else:
            of_module[path] = len(order)
    for block in sorted(blocks - order.keys()):
        raise CwpsError(
            f"{block}: it did not run while init was traced, so its depth is not known; "
            "give the model without nn.jit, or layer_decay = 1"
        )

    def depth(path: str) -> int:
        if path in head:
            return len(order) + 1
        while path not in of_module:  # a leaf's module or, if that was not called itself, one around it
            path = path.rpartition("/")[0]
        return of_module[path]

    return {path: depth(path) for path in leaves}


def grouped_kernels(model: nn.Module, *args: Any, **kwargs: Any) -> frozenset[str]:
    """Returns the paths of the kernels of a Linen model's grouped and depthwise convolutions.

    Args:
        model: any Linen module.
        *args, **kwargs: see `trace_parameters`.
    """
    _, owners = trace_parameters(model, *args, **kwargs)
    return frozenset(
        f"{path}/kernel"
        for path, owner in owners.items()
        if getattr(owner.module, "feature_group_count", 1) > 1
    )


def batch_norms(model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, nn.BatchNorm]:
    """Returns {path: module} of a Linen model's modules that are `nn.BatchNorm`, not bound to the model.

    Args:
        model: any Linen module.
        *args, **kwargs: see `trace_parameters`.
    """
    _, owners = trace_parameters(model, *args, **kwargs)
    modules = ((path, owner.module) for path, owner in owners.items())
    return {path: module.clone(parent=None) for path, module in modules if isinstance(module, nn.BatchNorm)}


def attention_paths(model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, tuple[int, int]]:
    """Returns {path: (heads, features of a head)} of a Linen model's attentions, in the order of their calls.

    Attentions that nn.scan or nn.vmap stacks are not in it.

    Args:
        model: any Linen module.
        *args, **kwargs: see `trace_parameters`.
    """
    shapes, owners = trace_parameters(model, *args, **kwargs)
    kernels = {"/".join(path): leaf.shape for path, leaf in flatten_dict(shapes).items()}
    found = {
        path: kernels.get(f"{path}/key/kernel", ())
        for path, owner in owners.items()
        if isinstance(owner.module, nn.MultiHeadDotProductAttention)
    }
    return {path: (shape[-2], shape[-1]) for path, shape in found.items() if len(shape) == 3}
