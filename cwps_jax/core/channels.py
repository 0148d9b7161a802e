"""Which leaves of a parameter tree have output channels, and on which axes.

A *layer* is a kernel with its bias. Its *score* (and so its *gate*) has the rank of the kernel, with
1 on every fan-in axis::

    Dense         kernel (in, out)               score (1, out)
    Conv          kernel (kh, kw, in, out)       score (1, 1, 1, out)      grouped and depthwise too
    ConvTranspose kernel (kh, kw, out, in)       score (1, 1, out, 1)      with transpose_kernel
    query         kernel (d, heads, head_dim)    score (1, heads, head_dim)
    out           kernel (heads, head_dim, d)    score (1, 1, d)
    scanned Dense kernel (layers, in, out)       score (layers, 1, out)

so mixing is only broadcasting, and the shapes of a tree of scores show where the channels are. A bias follows
its kernel: it has the score's shape without the fan-in axes.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cwps_jax.core.trees import Tree, flatten
from cwps_jax.errors import CwpsError

Axes = tuple[int, ...]
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layer:
    """A kernel with its bias.

    Attributes:
        path: path of the kernel, which is also the path of its score in a tree of masks.
        leaves: paths of the kernel and of its bias, if it has one.
        shapes: shapes of the leaves.
        gate_shape: the kernel's shape with 1 on every fan-in axis.
    """

    path: str
    leaves: tuple[str, ...]
    shapes: tuple[Shape, ...]
    gate_shape: Shape

    @property
    def channels(self) -> int:
        """Number of output channels."""
        return math.prod(self.gate_shape)

    @property
    def channel_parameters(self) -> int:
        """Parameters of one output channel: its slice of the kernel, and its bias."""
        return sum(math.prod(shape) for shape in self.shapes) // self.channels

    @property
    def parameters(self) -> int:
        """Parameters of the layer (n_l in METHOD's sparsity)."""
        return self.channels * self.channel_parameters


@dataclasses.dataclass(frozen=True)
class Layout:
    """Every leaf of a backbone's parameter tree, in exactly one of three places.

    Attributes:
        layers: the layers, whose channels are shared.
        private: (path, shape) of the leaves that each task keeps for itself: norms, embeddings, ...
        head: (path, shape) of the head's leaves, which each task has for itself and which are not counted as
            backbone.

    It is hashable, so it can be a static argument of jit.
    """

    layers: tuple[Layer, ...]
    private: tuple[tuple[str, Shape], ...]
    head: tuple[tuple[str, Shape], ...]

    @property
    def private_paths(self) -> tuple[str, ...]:
        return tuple(path for path, _ in self.private)

    @property
    def head_paths(self) -> tuple[str, ...]:
        return tuple(path for path, _ in self.head)

    @property
    def layer_paths(self) -> tuple[str, ...]:
        return tuple(leaf for layer in self.layers for leaf in layer.leaves)

    @property
    def backbone_shapes(self) -> dict[str, Shape]:
        """{path: shape} of every leaf except the head's."""
        layers = {
            path: shape for one in self.layers for path, shape in zip(one.leaves, one.shapes, strict=True)
        }
        return {**layers, **dict(self.private)}

    def summary(self) -> str:
        """Returns a table of the layers that a task can share, and of the leaves that it keeps for itself."""
        rows = [("layer", "shape", "channels", "parameters")]
        rows += [
            (one.path, str(one.shapes[0]), f"{one.channels:,}", f"{one.parameters:,}") for one in self.layers
        ]
        shared = self.backbone_parameters - self.private_parameters
        for name, count in (
            ("shared channels", shared),
            ("private (norms and the like)", self.private_parameters),
            ("head, in no ratio", self.head_parameters),
        ):
            rows.append((name, "", "", f"{count:,}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        aligned = (str.ljust, str.ljust, str.rjust, str.rjust)
        return "\n".join(
            "  ".join(align(cell, width) for align, cell, width in zip(aligned, row, widths, strict=True))
            for row in rows
        )

    @property
    def private_parameters(self) -> int:
        return sum(math.prod(shape) for _, shape in self.private)

    @property
    def head_parameters(self) -> int:
        return sum(math.prod(shape) for _, shape in self.head)

    @property
    def backbone_parameters(self) -> int:
        """N of METHOD's accounting: the parameters of everything except the head."""
        return sum(layer.parameters for layer in self.layers) + self.private_parameters


def gate_shape(kernel_shape: Sequence[int], axes: Axes) -> Shape:
    """Returns the kernel's shape with 1 on every axis that is not in `axes` (negative axes allowed)."""
    rank = len(kernel_shape)
    channel_axes = {axis % rank for axis in axes}
    return tuple(size if axis in channel_axes else 1 for axis, size in enumerate(kernel_shape))


def governs(gate_shape: Shape, leaf_shape: Shape) -> bool:
    """Whether a gate of this shape governs a leaf of its module, channel by channel."""
    if len(leaf_shape) == len(gate_shape):
        return all(g in (1, n) for g, n in zip(gate_shape, leaf_shape, strict=True))
    # A bias: the gate without its singletons (kept ones, such as a single head, do not matter).
    squeezed = tuple(n for n in gate_shape if n != 1)
    return len(leaf_shape) < len(gate_shape) and squeezed == tuple(n for n in leaf_shape if n != 1)


def gate_for_leaf(gate: jax.Array, leaf: Any) -> jax.Array:
    """Returns a layer's gate in a shape that broadcasts against one of the layer's leaves."""
    return gate if gate.ndim == len(leaf.shape) else jnp.reshape(gate, leaf.shape)


def gates_by_leaf(gates: Tree, params: Tree) -> dict[str, jax.Array]:
    """Returns, for every leaf that a gate governs, that gate in a shape that broadcasts against it.

    A gate has its kernel's path. It also governs the other leaf of the same module that has the kernel's
    channels, the bias. A module with several gated kernels must keep each bias in another module.

    Args:
        gates: nested dict, gates (or scores) at the paths of the kernels.
        params: nested dict, the backbone's parameters.

    Returns:
        {path of a leaf: its gate}, without private leaves, which have no gate.

    Raises:
        CwpsError: `params` has no leaf at the path of a gate, or its shape does not fit the gate.
    """
    leaves = flatten(params)
    flat_gates = flatten(gates)
    by_module: dict[str, list[str]] = {}
    for path in flat_gates:
        by_module.setdefault(path.rpartition("/")[0], []).append(path)
    found: dict[str, jax.Array] = {}
    for path, leaf in leaves.items():
        gate_path: str | None = path
        if path not in flat_gates:
            beside = by_module.get(path.rpartition("/")[0], [])
            gate_path = beside[0] if len(beside) == 1 else None
        if gate_path is None:
            continue
        gate = flat_gates[gate_path]
        if governs(gate.shape, leaf.shape):
            found[path] = gate_for_leaf(gate, leaf)
        elif gate_path == path:
            raise CwpsError(f"{path}: a gate of shape {gate.shape} does not fit {leaf.shape}")
    missing = sorted(set(flat_gates) - set(leaves))
    if missing:
        raise CwpsError(f"no parameters at {missing[0]}, where the masks have a gate")
    return found


def to_columns(leaf: Any, gate_shape: Shape) -> Any:
    """Returns a layer's leaf as a matrix, (fan-in, channels). NumPy stays NumPy.

    Args:
        leaf: a kernel or bias.
        gate_shape: the gate shape of the layer.
    """
    numpy = leaf.__array_namespace__()
    axes = [axis for axis, size in enumerate(gate_shape) if size != 1]
    if leaf.ndim == len(gate_shape):
        leaf = numpy.moveaxis(leaf, axes, range(leaf.ndim - len(axes), leaf.ndim))
    return numpy.reshape(leaf, (-1, math.prod(gate_shape)))


def from_columns(columns: Any, gate_shape: Shape, leaf_shape: Shape) -> Any:
    """Inverse of `to_columns`: returns the leaf in the backbone's own shape."""
    numpy = columns.__array_namespace__()
    if len(leaf_shape) != len(gate_shape):
        return numpy.reshape(columns, leaf_shape)
    axes = [axis for axis, size in enumerate(gate_shape) if size != 1]
    rest = [size for axis, size in enumerate(leaf_shape) if axis not in axes]
    moved = numpy.reshape(columns, rest + [leaf_shape[axis] for axis in axes])
    return numpy.moveaxis(moved, range(len(rest), len(leaf_shape)), axes)


def layout_from_axes(params: Tree, axes: Mapping[str, Axes | None], *, head: Sequence[str] = ()) -> Layout:
    """Builds a `Layout` from the channel axes of every leaf.

    Args:
        params: nested dict of arrays or shapes.
        axes: {path: channel axes of a kernel or bias, or None for a private leaf}. The leaf of a module with
            the highest rank is the kernel, which has the score.
        head: paths of the head's leaves; they need no entry in `axes`.

    Raises:
        CwpsError: a leaf without an entry, or a layer that one gate cannot govern.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(params).items()}
    private: list[tuple[str, Shape]] = []
    modules: dict[str, list[str]] = {}
    for path, shape in shapes.items():
        if path in head:
            continue
        if path not in axes:
            raise CwpsError(f"{path}: no rule says whether this leaf of shape {shape} has output channels")
        if axes[path] is None:
            private.append((path, shape))
        else:
            modules.setdefault(path.rpartition("/")[0], []).append(path)
    layers: list[Layer] = []
    for module, paths in modules.items():
        paths.sort(key=lambda path: (-len(shapes[path]), path))
        layers.extend(_layers_of_module(module, paths, shapes, axes, [path for path, _ in private]))
    layers.sort(key=lambda layer: layer.path)
    return Layout(tuple(layers), tuple(private), tuple((p, shapes[p]) for p in shapes if p in head))


def _layers_of_module(
    module: str,
    paths: list[str],
    shapes: Mapping[str, Shape],
    axes: Mapping[str, Axes | None],
    private: list[str],
) -> list[Layer]:
    rank = len(shapes[paths[0]])
    kernels = [path for path in paths if len(shapes[path]) == rank]
    gate_shapes = {path: gate_shape(shapes[path], axes[path] or ()) for path in kernels}
    if len(kernels) > 1:
        if len(kernels) != len(paths):
            raise CwpsError(
                f"{module}: it owns several kernels {kernels} and biases {paths[len(kernels) :]}; one "
                "module must own one kernel and its bias: move them to submodules"
            )
        return [Layer(path, (path,), (shapes[path],), gate_shapes[path]) for path in kernels]
    kernel, gate = kernels[0], gate_shapes[kernels[0]]
    for path in paths:
        if not governs(gate, shapes[path]):
            raise CwpsError(f"{path}: shape {shapes[path]} does not follow {kernel} {shapes[kernel]}")
    for path in private:
        if path.rpartition("/")[0] == module and governs(gate, shapes[path]):
            raise CwpsError(
                f"{path}: private, but it has the channels of {kernel} beside it; move it to a "
                "submodule, or let the rule of its module name its channel axes"
            )
    return [Layer(kernel, tuple(paths), tuple(shapes[path] for path in paths), gate)]
