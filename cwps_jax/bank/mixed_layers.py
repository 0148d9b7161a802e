"""One layer of a mixed batch: its shared channels multiplied once for all pictures, and each picture's own.

All is said for one picture, in forms of which `jax.vmap` makes what a batch shall do: a convolution by the
shared kernel stays one convolution, and a picture's own rows become a batched matrix product. Vmap of the
plain convolution by merged kernels would be one that is grouped by pictures, which CPUs are slow at.
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
    """Returns a leaf with rows in the places of its channels.

    Args:
        leaf: a kernel or bias.
        gate_shape: its layer's.
        channels: (P,); the layer's number of channels for padding.
        rows: (P, fan-in).
    """
    columns = to_columns(leaf, gate_shape)
    columns = columns.at[:, channels].set(rows.T.astype(leaf.dtype), mode="drop")
    return from_columns(columns, gate_shape, leaf.shape)


@dataclasses.dataclass(frozen=True)
class MixedLayer:
    """Stands for the operation of a layer whose features are its channels.

    Attributes:
        kernel: the shared one, (fan-in axes..., features...).
        channels: (P,), the picture's own; the number of channels for padding.
        rows: (P, fan-in).
    """

    kernel: jax.Array
    channels: jax.Array
    rows: jax.Array

    def dot_general(self, inputs: jax.Array, kernel: jax.Array, dimensions: Any, **kwargs: Any) -> jax.Array:
        """Stands for `jax.lax.dot_general` of a picture by a kernel; see there."""
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
        """Stands for `jax.lax.conv_general_dilated` of a picture by a kernel; see there."""
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
    """Returns an operation of a picture by its own merged kernel, which a CPU does for one after another.

    For kernels of fewer numbers than what placing a picture's own channels in the outputs, and their
    products, would write: those of early layers, whose merging is little work. It multiplies no more than
    a plain batch.
    """
    by_vmap = jax.vmap(operation)
    in_turn = lambda inputs, kernels: jax.lax.map(lambda one: operation(*one), (inputs, kernels))
    product = jax.custom_batching.custom_vmap(operation)

    @product.def_vmap
    def batched(size: int, is_batched: Any, inputs: jax.Array, kernels: jax.Array) -> tuple[jax.Array, bool]:
        axes = tuple(0 if one else None for one in is_batched)
        if None in axes:  # a model's own vmap around one kernel
            return jax.vmap(operation, axes)(inputs, kernels), True
        return jax.lax.platform_dependent(inputs, kernels, cpu=in_turn, default=by_vmap), True

    return product


def _rows_product(window: "Window", inputs: jax.Array, rows: jax.Array, precision: Any) -> jax.Array:
    """Returns the channels of some rows, (outputs, P), by the form that writes fewer numbers in between.

    Both multiply as often, but for strides. Either a row's weights of every place of the kernel are a channel
    of their own, multiplied by every pixel that is read, and shifted sums of those are the outputs; or what
    an output reads is copied into a column for it. Channels of a few rows are fewer than what a pixel has.
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
    """Returns a depthwise convolution: arithmetic on activations, by a kernel of every picture's own."""
    flat = kernel.reshape(len(taps), kernel.shape[-1])
    return functools.reduce(jnp.add, [tap * flat[place] for place, tap in enumerate(taps)])


@dataclasses.dataclass(frozen=True)
class Window:
    """Where a convolution's kernel reads.

    Attributes:
        sizes, strides, dilations: of each spatial axis.
        padding: (before, after) of each.
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
        """Returns it from the arguments of a convolution of (batch, spatial axes..., features)."""
        if isinstance(padding, str):
            spans = [(size - 1) * step + 1 for size, step in zip(sizes, dilations, strict=True)]
            padding = jax.lax.padtype_to_pads(shape[1:-1], spans, strides, padding)
        return cls(tuple(sizes), tuple(strides), tuple(dilations), tuple(map(tuple, padding)))

    def pad(self, inputs: jax.Array) -> jax.Array:
        """Returns what is read, (batch, spatial axes..., features), with its padding."""
        edges = [(0, 0, 0), *((low, high, 0) for low, high in self.padding), (0, 0, 0)]
        return jax.lax.pad(inputs, jnp.zeros((), inputs.dtype), edges)

    def outputs(self, padded: Sequence[int]) -> tuple[int, ...]:
        """Returns the shape of the outputs, (batch, spatial axes...), from that of what is padded."""
        reach = [(size - 1) * step for size, step in zip(self.sizes, self.dilations, strict=True)]
        sides = zip(padded[1:-1], reach, self.strides, strict=True)
        return padded[0], *((side - span - 1) // step + 1 for side, span, step in sides)

    def taps(self, padded: jax.Array) -> list[jax.Array]:
        """Returns what each of the kernel's places reads, (batch, spatial axes..., features), in order."""
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
