"""The mixed batch: one picture of each of many tasks, in one call of the plain model.

The computation is written for one picture: the model's own `apply`, with the effective parameters of the
picture's task. `jax.vmap` makes a batch of it, so whatever a model does with a leaf that a task has of its
own (norms and their statistics, class tokens, position embeddings, heads, layers that a user wrote) is right
for each picture, and can be fused if it is arithmetic on activations. Only layers that share channels have
another form for the batch, in `mixed_layers`: their shared channels are multiplied once for all pictures.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from cwps_jax.bank.mixed_layers import MixedLayer, merged
from cwps_jax.core.channels import Layer, Layout
from cwps_jax.core.trees import Flat, Tree, flatten, unflatten
from cwps_jax.errors import CwpsError
from cwps_jax.tracing import mode

# For each class of layers, the field that replaces the operation with which the layer multiplies.
_FIELDS: dict[type[nn.Module], str] = {
    nn.Conv: "conv_general_dilated",
    nn.Dense: "dot_general",
    nn.DenseGeneral: "dot_general",
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PrivateRows:
    """The values that the tasks of B pictures do not share, gathered for each picture.

    A layer may be left out if none of the tasks has channels of its own in it, and any leaf may be left out
    that equals its leaf in the shared variables.

    Attributes:
        channels: {path of a kernel: int32 (B, P)}, the output channels that the picture's task has of its
            own; the layer's number of channels stands for padding. P may differ between layers.
        rows: {path of a kernel or bias: (B, P, fan-in)}, the parameters of those channels in the form of
            `core.packing.pack`; a bias has fan-in 1.
        params: the private leaves and the head, nested as in the backbone, each (B, ...).
        other: other collections, such as {"batch_stats": ...}, with leaves (B, ...).
    """

    channels: Mapping[str, jax.Array]
    rows: Mapping[str, jax.Array]
    params: Tree
    other: Mapping[str, Tree]


def mixed_apply(
    model: nn.Module, layout: Layout, shared: Mapping[str, Tree], private: PrivateRows, inputs: jax.Array
) -> jax.Array:
    """Returns the logits of pictures, each computed by the network of its task.

    The function is pure, and meant to be called under `jax.jit`: merged parameters that a layer does not use
    are then not computed.

    Args:
        model: the plain backbone with its head.
        layout: the backbone's layout.
        shared: the pre-trained model's variables, "params" and its other collections.
        private: the values that the pictures' tasks do not share.
        inputs: (B, height, width, channels), or another shape that the model takes.

    Returns:
        (B, classes), with the dtype of the model's logits.

    Raises:
        CwpsError: rows or leaves are not in the layout or the shared variables, or have other shapes.
    """
    layers = {layer.path: layer for layer in layout.layers}
    leaves = flatten(shared["params"])
    others = {name: flatten(tree) for name, tree in shared.items() if name != "params"}
    _check(layers, leaves, others, private, len(inputs))

    def answer(own: PrivateRows, picture: jax.Array) -> jax.Array:
        params = {**leaves, **flatten(own.params)}
        for path, channels in own.channels.items():
            for leaf in layers[path].leaves:
                params[leaf] = merged(leaves[leaf], layers[path].gate_shape, channels, own.rows[leaf])
        variables = {
            name: unflatten({**flat, **flatten(own.other.get(name, {}))}) for name, flat in others.items()
        }
        with nn.intercept_methods(_interceptor(layers, leaves, own)):
            logits = model.apply(
                {"params": unflatten(params), **variables}, picture[None], **mode(model, train=False)
            )
        return logits[0]

    return jax.vmap(answer)(private, inputs)


def _interceptor(layers: Mapping[str, Layer], leaves: Flat, own: PrivateRows) -> Any:
    """Returns the interceptor that makes plain layers multiply by the shared kernel and by a picture's rows.

    All other layers keep the picture's merged kernel: scanned and stacked layers, transposed convolutions,
    layers that a user wrote. A bias is merged in all layers, which is little work.
    """

    def intercept(next_function, args, kwargs, context):
        module = context.module
        path = _kernel_path(module, context.method_name)
        if path is None or path not in own.channels or not _has_channels_last(module, layers[path]):
            return next_function(*args, **kwargs)
        layer = MixedLayer(leaves[path], own.channels[path], own.rows[path])
        field = _FIELDS[type(module)]
        return module.clone(parent=module.scope, **{field: getattr(layer, field)})(*args, **kwargs)

    return intercept


def _kernel_path(module: nn.Module, method_name: str) -> str | None:
    """Returns the path of the kernel that a plain layer multiplies by, or None for other modules."""
    field = _FIELDS.get(type(module))
    if field is None or method_name != "__call__" or module.scope is None:
        return None
    layer: Any = module
    plain = (
        getattr(layer, field) is None
        and getattr(layer, f"{field}_cls") is None
        and layer.promote_dtype is nn.dtypes.promote_dtype
        and getattr(layer, "mask", None) is None
        and not getattr(layer, "batch_dims", ())
    )
    return "/".join((*module.path, "kernel")) if plain else None


def _has_channels_last(module: Any, layer: Layer) -> bool:
    """Returns whether a layer's channels are its features in their order, and it is not a stack of layers."""
    shape = nn.meta.unbox(module.scope.get_variable("params", "kernel")).shape
    fan_in = len(shape) - (1 if isinstance(module.features, int) else len(module.features))
    return layer.shapes[0] == shape and layer.gate_shape == (1,) * fan_in + shape[fan_in:]


def _check(
    layers: Mapping[str, Layer],
    leaves: Flat,
    others: Mapping[str, Flat],
    private: PrivateRows,
    pictures: int,
) -> None:
    """Raises CwpsError for private rows and leaves that do not fit the layout or the shared variables."""
    expected: dict[str, tuple[int, ...]] = {}
    for path, channels in private.channels.items():
        if path not in layers:
            raise CwpsError(f"{path}: private channels of no layer of the layout; make both of one model")
        if channels.ndim != 2 or len(channels) != pictures:
            raise CwpsError(
                f"{path}: channels are {channels.shape}, must be ({pictures}, rows): one entry per picture"
            )
        for leaf, shape in zip(layers[path].leaves, layers[path].shapes, strict=True):
            expected[f"rows/{leaf}"] = (*channels.shape, math.prod(shape) // layers[path].channels)
    given = flatten({"rows": unflatten(private.rows), "params": private.params, **private.other})
    if lacking := sorted(expected.keys() - given.keys()):
        raise CwpsError(f"{lacking[0]}: channels without their rows; give both")
    known = {f"{name}/{path}": leaf for name, flat in others.items() for path, leaf in flat.items()}
    known.update({f"params/{path}": leaf for path, leaf in leaves.items()})
    expected.update({path: (pictures, *known[path].shape) for path in given if path in known})
    for path, leaf in given.items():
        if path not in expected:
            raise CwpsError(f"{path}: not in the shared variables, or rows without their channels")
        if leaf.shape != expected[path]:
            raise CwpsError(f"{path}: shape {leaf.shape}, must be {expected[path]}: one entry per picture")
