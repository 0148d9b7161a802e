"""Weight gradients of active channels alone, in the layers of any Linen model.

A weight gradient is a third of a layer's work in training. The gradient of one output channel does not depend
on the others, so if only some channels are active, only their share of the work is needed.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cwps_jax.core.channels import Layout
from cwps_jax.core.compact import Placement, merge
from cwps_jax.core.trees import Tree, flatten
from cwps_jax.tracing import mode

Product = Callable[[jax.Array, jax.Array], jax.Array]
Sources = tuple[jax.Array, jax.Array, jax.Array, Placement]  # packed kernel, the parent's, gate, placement

# Each class with the operation that it multiplies by, and the field that replaces it.
_OPERATIONS: dict[type[nn.Module], tuple[str, Callable[..., jax.Array]]] = {
    nn.Conv: ("conv_general_dilated", jax.lax.conv_general_dilated),
    nn.Dense: ("dot_general", jax.lax.dot_general),
    nn.DenseGeneral: ("dot_general", jax.lax.dot_general),
}


@contextlib.contextmanager
def active_gradients(
    effective: Tree, packed: Tree, parent: Tree, gates: Tree, placed: Mapping[str, Placement]
) -> Iterator[None]:
    """A context in which Dense and Conv layers compute the weight gradient of their open channels only.

    The gradient goes straight to the packed kernels; its values are those of the plain layer. Kernels are not
    kept for the backward pass but merged again. Grouped and transposed convolutions, scanned or
    rematerialised blocks, and a user's own layers compute the gradient of the whole kernel, from which
    `unpack` takes the open channels.

    Args:
        effective: the parameters that the model is applied to, see `core.compact.unpack`.
        packed: the child that they were computed from.
        parent: the parent that they were computed from.
        gates: nested dict of hard gates.
        placed: see `core.compact.placements`.
    """
    kernels, columns, parents, flat_gates = (flatten(tree) for tree in (effective, packed, parent, gates))

    def intercept(next_function, args, kwargs, context):
        module = context.module
        path = _kernel_path(module, context.method_name)
        if path not in flat_gates or not 0 < columns[path].shape[1] < flat_gates[path].size:
            return next_function(*args, **kwargs)
        # Only this very array: a lifted module sees a slice or a copy, whose gradient is another.
        itself = module.scope.get_variable("params", "kernel") is kernels[path]
        if not itself or flat_gates[path].shape != _feature_gate_shape(module, kernels[path].shape):
            return next_function(*args, **kwargs)
        field, operation = _OPERATIONS[type(module)]
        sources = columns[path], parents[path], flat_gates[path], placed[path]
        active = functools.partial(_active, operation, sources, _feature_axes(module))
        layer: Any = module.clone(parent=module.scope, **{field: active})
        return layer(*args, **kwargs)

    with nn.intercept_methods(intercept):
        yield


def gradient_work(model: nn.Module, example: jax.ShapeDtypeStruct, layout: Layout) -> dict[str, float]:
    """Returns {path of a kernel: multiplications of one channel's weight gradient}, for one image.

    Args:
        model: the plain backbone with its head.
        example: shape and type of a batch of one image.
        layout: its layout.

    Layers that `active_gradients` does not change are left out.
    """
    found: dict[str, float] = {}
    gate_shapes = {layer.path: layer.gate_shape for layer in layout.layers}

    def record(next_function, args, kwargs, context):
        outputs = next_function(*args, **kwargs)
        path = _kernel_path(context.module, context.method_name)
        if path in gate_shapes:
            kernel = nn.meta.unbox(context.module.scope.get_variable("params", "kernel")).shape
            gate = _feature_gate_shape(context.module, kernel)
            if gate == gate_shapes[path]:
                places, fan_in = outputs.size // math.prod(gate), math.prod(kernel) // math.prod(gate)
                found[path] = found.get(path, 0.0) + places * fan_in
        return outputs

    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    with nn.intercept_methods(record):
        jax.eval_shape(lambda images: model.init(keys, images, **mode(model, train=False)), example)
    return found


def _kernel_path(module: nn.Module, method_name: str) -> str | None:
    """Returns the path of the kernel that a plain layer multiplies by, or None for other modules."""
    if type(module) not in _OPERATIONS or method_name != "__call__" or module.scope is None:
        return None
    layer: Any = module
    field = _OPERATIONS[type(module)][0]
    plain = (
        getattr(layer, field) is None
        and getattr(layer, f"{field}_cls") is None
        and layer.promote_dtype is nn.dtypes.promote_dtype
        and getattr(layer, "feature_group_count", 1) == 1
        and getattr(layer, "mask", None) is None
        and not getattr(layer, "batch_dims", ())
    )
    return "/".join((*module.path, "kernel")) if plain else None


def _feature_gate_shape(module: Any, kernel_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of a layer's gate if its channels are its features, in their order."""
    fan_in = len(kernel_shape) - _feature_axes(module)
    return (1,) * fan_in + kernel_shape[fan_in:]


def _feature_axes(module: Any) -> int:
    return 1 if isinstance(module.features, int) else len(module.features)


def _active(
    operation: Callable[..., jax.Array],
    sources: Sources,
    features: int,
    inputs: jax.Array,
    kernel: jax.Array,
    *args: Any,
    **kwargs: Any,
) -> jax.Array:
    """Stands for a layer's operation; the kernel's gradient goes to the packed kernel alone."""
    packed, parent, gate, placement = sources
    # Cast as the layer casts its kernel: the gradient gets the plain step's precision.
    sources = packed.astype(kernel.dtype), parent, gate, placement
    product = lambda x, k: operation(x, k, *args, **kwargs)
    return _multiply(product, features, inputs, jax.lax.stop_gradient(kernel), sources)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _multiply(
    product: Product, features: int, inputs: jax.Array, kernel: jax.Array, sources: Sources
) -> jax.Array:
    return product(inputs, kernel)


def _multiply_forward(product, features, inputs, kernel, sources):
    return product(inputs, kernel), (inputs, sources)


def _multiply_backward(product, features, residuals, gradient):
    inputs, (packed, parent, gate, placement) = residuals
    placed = dataclasses.replace(placement, columns=_after(gradient, placement.columns))
    kernel = merge(packed, parent.astype(packed.dtype), gate, placed)
    (of_inputs,) = jax.linear_transpose(lambda x: product(x, kernel), inputs)(gradient)
    total, channels = gate.size, placement.channels
    gradient = gradient.reshape(*gradient.shape[:-features], total)
    # Padding is zeroed in the result, which is smaller than the activations.
    chosen = jnp.take(gradient, channels, axis=-1, mode="clip")
    narrow = jax.ShapeDtypeStruct((*kernel.shape[:-features], len(channels)), kernel.dtype)
    of_kernel = _kernel_gradient(product, inputs, chosen, narrow)
    of_packed = of_kernel.reshape(-1, len(channels))
    return of_inputs, None, (jnp.where(channels < total, of_packed, 0), None, None, None)


def _kernel_gradient(
    product: Product, inputs: jax.Array, gradient: jax.Array, kernel: jax.ShapeDtypeStruct
) -> jax.Array:
    """Returns the gradient of a kernel, (..., its channels), from that of its outputs."""

    def plain(inputs: jax.Array, gradient: jax.Array) -> jax.Array:
        return jax.linear_transpose(lambda k: product(inputs, k), kernel)(gradient)[0]

    # Not of 1 x 1: it gains little, and inputs that other layers read too would be kept in two layouts.
    (equation, *more) = jax.make_jaxpr(product)(inputs, kernel).eqns
    of = equation.params
    turns = (
        not more
        and equation.primitive.name == "conv_general_dilated"
        and all(step == 1 for step in (*of["window_strides"], *of["lhs_dilation"]))
        and kernel.shape[of["dimension_numbers"].rhs_spec[1]] >= kernel.shape[-1]
        and any(kernel.shape[axis] > 1 for axis in of["dimension_numbers"].rhs_spec[2:])
    )
    if not turns:
        return plain(inputs, gradient)
    return jax.lax.platform_dependent(
        inputs, gradient, cpu=functools.partial(_turned, of, kernel), default=plain
    )


def _turned(
    of: Mapping[str, Any], kernel: jax.ShapeDtypeStruct, inputs: jax.Array, gradient: jax.Array
) -> jax.Array:
    """Returns a kernel's gradient as a convolution of the outputs' gradient by the inputs.

    The usual convolution is that of the inputs by the outputs' gradient. Its few channels would not fill the
    vector registers of a CPU.

    Args:
        of: parameters of the convolution, without strides.
        kernel: the kernel's shape and type.
        inputs, gradient: the convolution's inputs and its outputs' gradient.
    """
    numbers = of["dimension_numbers"]
    shapes = (
        [array.shape[axis] for axis in spec[2:]]
        for array, spec in (
            (inputs, numbers.lhs_spec),
            (gradient, numbers.out_spec),
            (kernel, numbers.rhs_spec),
        )
    )
    padding = [
        ((size - 1) * dilation - low, entered + low - left)
        for entered, left, size, dilation, (low, _) in zip(
            *shapes, of["rhs_dilation"], of["padding"], strict=True
        )
    ]
    # Channels are the batch, and the batch is summed over.
    swapped = lambda spec: (spec[1], spec[0], *spec[2:])
    reversed_kernel = jax.lax.conv_general_dilated(
        gradient,
        inputs,
        window_strides=of["rhs_dilation"],
        padding=padding,
        dimension_numbers=jax.lax.ConvDimensionNumbers(
            swapped(numbers.out_spec), swapped(numbers.lhs_spec), numbers.rhs_spec
        ),
        precision=of["precision"],
        preferred_element_type=kernel.dtype,
    )
    return jax.lax.rev(reversed_kernel, numbers.rhs_spec[2:])


def _after(first: jax.Array, value: jax.Array) -> jax.Array:
    """Returns an integer array as it is, in a way that the compiler can only compute after another one.

    XLA drops its own optimization barriers before it orders a CPU program. It would then merge all kernels
    for the backward pass, which have as many bytes as the model, in the forward pass.
    """
    bits = jax.lax.bitcast_convert_type(first.ravel()[0].astype(jnp.float32), jnp.uint32)
    return value + ((bits & 1) >> 1).astype(value.dtype)


_multiply.defvjp(_multiply_forward, _multiply_backward)
