"""Layouts of trees without their modules, from shapes alone, if these allow only one layout."""

from collections.abc import Mapping, Sequence

from cwps_jax.core.channels import Axes, Layout, Shape, layout_from_axes
from cwps_jax.core.patterns import HEAD, PRIVATE, check_patterns, leaves_of_heads, matches
from cwps_jax.core.trees import Tree, flatten
from cwps_jax.errors import CwpsError


def layout_from_shapes(
    params: Tree,
    *,
    head: str | Sequence[str] = HEAD,
    private: Sequence[str] = (),
    axes: Mapping[str, Axes | None] | None = None,
) -> Layout:
    """Returns the layout of a parameter tree that came without its model, such as an NNX model's state.

    A leaf called `kernel` is a layer's, with a `bias` beside it if there is one; a leaf of a module without a
    kernel is private if it is a vector (a norm's scale or bias) or called `embedding`. For Linen modules use
    `channel_layout`, which knows more.

    Args:
        params: nested dict of arrays or shapes.
        head: path of the module whose parameters are the head, or its name anywhere in the tree; or several.
        private: further patterns (`fnmatch`) over paths of private leaves, beside norms, tokens, LayerScale.
        axes: {pattern over paths: channel axes, or None for a private leaf}, which win over the shapes; the
            first that matches counts.

    Raises:
        CwpsError: the channel axes of a leaf cannot be told from its shape (the message has its path), a
            pattern matches nothing, or a head is not a module (but there may be no "head").

    Examples:
        >>> import numpy as np
        >>> dense = {"kernel": np.ones((3, 4)), "bias": np.ones(4)}
        >>> [layer.path for layer in layout_from_shapes({"dense": dense, "head": dense}).layers]
        ['dense/kernel']
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(params).items()}
    given = axes or {}
    check_patterns((*private, *given), shapes)
    heads = leaves_of_heads(head, shapes)
    found: dict[str, Axes | None] = {}
    # Kernels first: a bias is private where the kernel beside it is.
    for path in sorted(shapes.keys() - heads, key=lambda path: (_name(path) != "kernel", path)):
        shape, name = shapes[path], _name(path)
        beside = path.removesuffix(name)
        pattern = next((one for one in given if matches(path, [one])), None)
        if pattern is not None:
            found[path] = given[pattern]
        elif matches(path, (*PRIVATE, *private)):
            found[path] = None
        elif name == "kernel":
            found[path] = axes_from_shapes(shape, shapes.get(f"{beside}bias"), path)
        elif name == "bias" and f"{beside}kernel" in found:
            found[path] = found[f"{beside}kernel"] and tuple(range(-len(shape), 0))
        elif name == "embedding" or len(shape) <= 1:
            found[path] = None
        else:
            raise CwpsError(
                f"{path}: no rule for a leaf of shape {shape}; say where its channels are, e.g. "
                f"axes={{'{path}': (-1,)}}, or None for a private leaf"
            )
    return layout_from_axes(params, found, head=heads)


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def axes_from_shapes(kernel_shape: Shape, bias_shape: Shape | None, path: str) -> Axes:
    """Returns the channel axes of a foreign kernel, if its shape and its bias allow only one answer.

    Use it for trees without their modules. A kernel of rank 2 is a Dense layer. For a higher rank the bias
    decides: shapes alone cannot distinguish a scanned Dense from an attention projection without bias.

    Raises:
        CwpsError: there is no answer, or more than one.
    """
    if len(kernel_shape) == 2 and bias_shape in (None, kernel_shape[-1:]):
        return (-1,)
    readings: set[Axes] = set()
    if bias_shape:
        rank, count = len(kernel_shape), len(bias_shape)
        for lifted in range(count):  # axes of scanned copies, then the layer's own channels at the end
            own = count - lifted
            if count < rank and (*kernel_shape[:lifted], *kernel_shape[rank - own :]) == bias_shape:
                readings.add((*range(-rank, -rank + lifted), *range(-own, 0)))
        if rank >= 4 and count == 1 and kernel_shape[-2:-1] == bias_shape:
            readings.add((-2,))  # transposed convolution with a swapped kernel
    if len(readings) == 1:
        return readings.pop()
    what = "several readings" if readings else "no rule"
    raise CwpsError(
        f"{path}: {what} for a kernel of shape {kernel_shape} with bias {bias_shape}; "
        "pass its channel axes, e.g. axes={'" + path + "': (-1,)}"
    )
