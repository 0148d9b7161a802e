"""One layer of a mixed batch: shared channels are multiplied once for all pictures, others for each one.

Everything is written for one picture, in forms that `jax.vmap` turns into an efficient batch: a convolution
with the shared kernel stays one convolution, and the rows of each picture become a batched matrix product.
Vmap of the plain convolution with merged kernels would be a convolution that is grouped by pictures, which
is slow on CPUs.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cwps_jax.core.channels import from_columns, to_columns

Operation = Callable[[jax.Array, jax.Array], jax.Array]


def merged(leaf: jax.Array, gate_shape: tuple[int, ...], channels: jax.Array, rows: jax.Array) -> jax.Array:
    """Returns a leaf in which rows replace channels.

    Args:
        leaf: a kernel or bias.
        gate_shape: the gate shape of its layer.
        channels: (P,), the channels that are replaced; padding is the layer's number of channels.
        rows: (P, fan-in), their new parameters.
    """
    columns = to_columns(leaf, gate_shape)
    columns = columns.at[:, channels].set(rows.T.astype(leaf.dtype), mode="drop")
    return from_columns(columns, gate_shape, leaf.shape)


@dataclasses.dataclass(frozen=True)
class MixedLayer:
    """Replaces the operation of a layer whose features are its channels.

    Attributes:
        kernel: the shared kernel, (fan-in axes..., features...).
        channels: (P,), the picture's own channels; padding is the layer's number of channels.
        rows: (P, fan-in), the parameters of these channels.
    """

    kernel: jax.Array
    channels: jax.Array
    rows: jax.Array

    def dot_general(self, inputs: jax.Array, kernel: jax.Array, dimensions: Any, **kwargs: Any) -> jax.Array:
        """Replaces `jax.lax.dot_general` of a picture and a kernel; see there."""
        (axes, _), _ = dimensions
        operation = lambda x, k: jax.lax.dot_general(x, k, dimensions, **kwargs)

        def private(inputs: jax.Array, rows: jax.Array) -> jax.Array:
            last = range(inputs.ndim - len(axes), inputs.ndim)
            inputs = jnp.moveaxis(inputs, [axis % inputs.ndim for axis in axes], last)
            columns = inputs.reshape(-1, math.prod(inputs.shape[-len(axes) :]))
            return jax.lax.dot_general(columns, rows, (((1,), (1,)), ((), ())), **kwargs)

        return self._product(operation, private, len(axes), inputs, kernel.dtype)

    def conv_general_dilated(
        self,
        inputs: jax.Array,
        kernel: jax.Array,
        window_strides: Sequence[int],
        padding: Any,
        **kwargs: Any,
    ) -> jax.Array:
        """Replaces `jax.lax.conv_general_dilated` of a picture and a kernel; see there."""
        operation = lambda x, k: jax.lax.conv_general_dilated(x, k, window_strides, padding, **kwargs)
        groups, fan_in = kwargs["feature_group_count"], kernel.ndim - 1
        depthwise = groups == kernel.shape[-1] and kernel.shape[-2] == 1
        if any(step > 1 for step in kwargs["lhs_dilation"]) or (groups > 1 and not depthwise):
            return operation(inputs, kernel)
        window = Window.of(kernel.shape[:-2], window_strides, padding, kwargs["rhs_dilation"], inputs.shape)

        if depthwise:
            return _depthwise(window.taps(window.pad(inputs)), kernel)

        outputs = math.prod(window.outputs(jax.eval_shape(window.pad, inputs).shape))
        places, channels = math.prod(window.sizes), kernel.shape[-1]
        if kernel.size <= outputs * (channels + places * len(self.rows)):
            return _one_by_one(operation)(inputs, kernel)
        private = lambda x, rows: _rows_product(window, x, rows, kwargs["precision"])
        return self._product(operation, private, fan_in, inputs, kernel.dtype)

    def _product(
        self, operation: Operation, private: Operation, fan_in: int, inputs: jax.Array, dtype: Any
    ) -> jax.Array:
        shape = self.kernel.shape[fan_in:]
        shared = operation(inputs, self.kernel.astype(dtype))
        flat = shared.reshape(-1, math.prod(shape))
        own = private(inputs, self.rows.astype(dtype))
        placed = jax.nn.one_hot(self.channels, flat.shape[-1], dtype=dtype)
        kept = 1 - jnp.sum(placed, axis=0)
        return (flat * kept + own @ placed).reshape(shared.shape)


def _one_by_one(operation: Operation) -> Operation:
    """Returns an operation of each picture with its merged kernel; a CPU takes the pictures one by one.

    It is for kernels that have fewer numbers than would be written by multiplying a picture's own channels
    and placing them in the outputs. Such are the kernels of early layers, which are quickly merged. It does
    not multiply more often than a plain batch.
    """
    by_vmap = jax.vmap(operation)
    in_turn = lambda inputs, kernels: jax.lax.map(lambda one: operation(*one), (inputs, kernels))
    product = jax.custom_batching.custom_vmap(operation)

    @product.def_vmap
    def batched(size: int, is_batched: Any, inputs: jax.Array, kernels: jax.Array) -> tuple[jax.Array, bool]:
        axes = tuple(0 if one else None for one in is_batched)
        if None in axes:  # The model itself applies vmap around one kernel.
            return jax.vmap(operation, axes)(inputs, kernels), True
        return jax.lax.platform_dependent(inputs, kernels, cpu=in_turn, default=by_vmap), True

    return product


def _rows_product(window: "Window", inputs: jax.Array, rows: jax.Array, precision: Any) -> jax.Array:
    """Returns the channels of some rows, (outputs, P), by the form with fewer intermediate numbers.

    Except for strides, both forms multiply equally often. In the first, a row's weights at each place of the
    kernel are multiplied by every pixel, and the outputs are shifted sums of the products. In the second, the
    inputs of each output are copied into a column. A few rows give fewer products than a pixel has features.
    """
    places, features = math.prod(window.sizes), inputs.shape[-1]
    padded = window.pad(inputs)
    outputs = math.prod(window.outputs(padded.shape))
    if math.prod(padded.shape[:-1]) * len(rows) < outputs * features:
        weights = rows.reshape(len(rows), places, features)
        products = jnp.einsum("...i,poi->...op", inputs, weights, precision=precision)
        products = window.pad(products.reshape(*inputs.shape[:-1], places * len(rows)))
        parts = [
            tap[..., place * len(rows) : (place + 1) * len(rows)]
            for place, tap in enumerate(window.taps(products))
        ]
        return functools.reduce(jnp.add, parts).reshape(outputs, len(rows))
    columns = jnp.concatenate(window.taps(padded), axis=-1).reshape(outputs, places * features)
    return jax.lax.dot_general(columns, rows, (((1,), (1,)), ((), ())), precision=precision)


def _depthwise(taps: Sequence[jax.Array], kernel: jax.Array) -> jax.Array:
    """Returns a depthwise convolution, which is arithmetic on activations, by the picture's merged kernel."""
    flat = kernel.reshape(len(taps), kernel.shape[-1])
    return functools.reduce(jnp.add, [tap * flat[place] for place, tap in enumerate(taps)])


@dataclasses.dataclass(frozen=True)
class Window:
    """The places that a convolution's kernel reads.

    Attributes:
        sizes, strides, dilations: the kernel's size, stride and dilation on each spatial axis.
        padding: (before, after) for each spatial axis.
    """

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]

    @classmethod
    def of(
        cls,
        sizes: Sequence[int],
        strides: Sequence[int],
        padding: Any,
        dilations: Sequence[int],
        shape: Sequence[int],
    ) -> "Window":
        """Returns the window of a convolution with these arguments; `shape` is (batch, axes..., features)."""
        if isinstance(padding, str):
            spans = [(size - 1) * step + 1 for size, step in zip(sizes, dilations, strict=True)]
            padding = jax.lax.padtype_to_pads(shape[1:-1], spans, strides, padding)
        return cls(tuple(sizes), tuple(strides), tuple(dilations), tuple(map(tuple, padding)))

    def pad(self, inputs: jax.Array) -> jax.Array:
        """Returns the inputs, (batch, spatial axes..., features), with their padding."""
        edges = [(0, 0, 0), *((low, high, 0) for low, high in self.padding), (0, 0, 0)]
        return jax.lax.pad(inputs, jnp.zeros((), inputs.dtype), edges)

    def outputs(self, padded: Sequence[int]) -> tuple[int, ...]:
        """Returns the shape of the outputs, (batch, spatial axes...), from the shape of the padded inputs."""
        reach = [(size - 1) * step for size, step in zip(self.sizes, self.dilations, strict=True)]
        sides = zip(padded[1:-1], reach, self.strides, strict=True)
        return padded[0], *((side - span - 1) // step + 1 for side, span, step in sides)

    def taps(self, padded: jax.Array) -> list[jax.Array]:
        """Returns the inputs that each place of the kernel reads, (batch, spatial axes..., features)."""
        batch, *sides = self.outputs(padded.shape)
        found = []
        for place in itertools.product(*map(range, self.sizes)):
            starts = [at * step for at, step in zip(place, self.dilations, strict=True)]
            ends = [
                start + (side - 1) * step + 1
                for start, side, step in zip(starts, sides, self.strides, strict=True)
            ]
            first, last = (0, *starts, 0), (batch, *ends, padded.shape[-1])
            found.append(jax.lax.slice(padded, first, last, (1, *self.strides, 1)))
        return found
