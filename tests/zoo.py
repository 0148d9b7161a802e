"""Every kind of layer that has output channels, and where its output shows them."""

import dataclasses
import functools
from collections.abc import Mapping

import flax.linen as nn
import jax
import numpy as np

from cwps_jax.core.channels import Layout
from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.modules import channel_layout


@dataclasses.dataclass(frozen=True)
class Kind:
    """A module with layers of one kind.

    Attributes:
        model: the module.
        shape: of its input.
        channel_axes: {path of a kernel: axes of the channels in the output of the module that owns it}.
        gate_shapes: {path of a kernel: shape of its gate}.
        copies: whether the first channel axis counts copies that run one after another.
    """

    model: nn.Module
    shape: tuple[int, ...]
    channel_axes: Mapping[str, tuple[int, ...]]
    gate_shapes: Mapping[str, tuple[int, ...]]
    copies: bool = False


class SelfAttending(nn.Module):
    """Attention of a sequence to itself."""

    heads: int = 2

    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(self.heads, qkv_features=6, name="attention")(x)


class Block(nn.Module):
    """A transformer block without its second half."""

    @nn.compact
    def __call__(self, x, _=None):
        y = nn.LayerNorm(name="norm")(x)
        x = x + nn.MultiHeadDotProductAttention(2, qkv_features=6, name="attention")(y)
        return nn.Dense(5, name="dense")(x), None


class Many(nn.Module):
    """A module, lifted by nn.scan, nn.vmap or nn.remat, under the name `blocks`."""

    lifted: type[nn.Module]

    @nn.compact
    def __call__(self, x):
        y = self.lifted(name="blocks")(x)
        return y[0] if isinstance(y, tuple) else y


class FiveDense(nn.Module):
    """A Dense layer of five channels and no bias: in it shapes say least."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(5, use_bias=False, name="dense")(x)


# Captured outputs of modules are stacked as their parameters are.
_LIFT = dict(variable_axes={"params": 0, "intermediates": 0}, split_rngs={"params": True})
_ATTENTION_AXES = {"query": (-2, -1), "key": (-2, -1), "value": (-2, -1), "out": (-1,)}


def _attention(prefix: str, lead: tuple[int, ...], copies: tuple[int, ...], heads: int = 2):
    gates = {name: (*copies, 1, heads, 6 // heads) for name in ("query", "key", "value")}
    gates["out"] = (*copies, 1, 1, 5)
    axes = {f"{prefix}{name}/kernel": (*lead, *_ATTENTION_AXES[name]) for name in gates}
    return axes, {f"{prefix}{name}/kernel": shape for name, shape in gates.items()}


def _blocks(lead: tuple[int, ...], copies: tuple[int, ...]):
    axes, gates = _attention("blocks/attention/", lead, copies)
    axes["blocks/dense/kernel"], gates["blocks/dense/kernel"] = (*lead, -1), (*copies, 1, 5)
    return axes, gates


KINDS = {
    "dense": Kind(nn.Dense(5), (2, 3), {"kernel": (-1,)}, {"kernel": (1, 5)}),
    "dense_one_channel": Kind(nn.Dense(1), (2, 3), {"kernel": (-1,)}, {"kernel": (1, 1)}),
    "conv": Kind(nn.Conv(5, (3, 3)), (2, 4, 4, 3), {"kernel": (-1,)}, {"kernel": (1, 1, 1, 5)}),
    "conv_without_bias": Kind(
        nn.Conv(5, (3, 3), use_bias=False), (2, 4, 4, 3), {"kernel": (-1,)}, {"kernel": (1, 1, 1, 5)}
    ),
    "grouped": Kind(
        nn.Conv(6, (3, 3), feature_group_count=2), (2, 4, 4, 4), {"kernel": (-1,)}, {"kernel": (1, 1, 1, 6)}
    ),
    "depthwise": Kind(
        nn.Conv(4, (3, 3), feature_group_count=4), (2, 4, 4, 4), {"kernel": (-1,)}, {"kernel": (1, 1, 1, 4)}
    ),
    "transposed": Kind(
        nn.ConvTranspose(5, (3, 3), (2, 2)), (2, 4, 4, 3), {"kernel": (-1,)}, {"kernel": (1, 1, 1, 5)}
    ),
    "transposed_swapped": Kind(
        nn.ConvTranspose(5, (3, 3), (2, 2), transpose_kernel=True),
        (2, 4, 4, 3),
        {"kernel": (-1,)},
        {"kernel": (1, 1, 5, 1)},
    ),
    "transposed_swapped_square": Kind(
        nn.ConvTranspose(4, (3, 3), (2, 2), transpose_kernel=True),
        (2, 4, 4, 4),
        {"kernel": (-1,)},
        {"kernel": (1, 1, 4, 1)},
    ),
    "dense_general": Kind(
        nn.DenseGeneral((2, 3), axis=(-2, -1)), (2, 4, 5), {"kernel": (-2, -1)}, {"kernel": (1, 1, 2, 3)}
    ),
    "dense_general_of_each_item": Kind(
        nn.DenseGeneral(4, batch_dims=(0,)), (2, 3, 5), {"kernel": (0, -1)}, {"kernel": (2, 1, 4)}
    ),
    "attention": Kind(SelfAttending(), (2, 3, 5), *_attention("attention/", (), ())),
    "attention_of_one_head": Kind(SelfAttending(1), (2, 3, 5), *_attention("attention/", (), (), heads=1)),
    "scanned": Kind(Many(nn.scan(Block, length=4, **_LIFT)), (2, 3, 5), *_blocks((0,), (4,)), copies=True),
    "scanned_once": Kind(
        Many(nn.scan(Block, length=1, **_LIFT)), (2, 3, 5), *_blocks((0,), (1,)), copies=True
    ),
    "mapped": Kind(Many(nn.vmap(Block, **_LIFT)), (3, 2, 3, 5), *_blocks((0,), (3,))),
    "mapped_dense_alone": Kind(
        Many(nn.vmap(FiveDense, **_LIFT)),
        (5, 2, 5),
        {"blocks/dense/kernel": (0, -1)},
        {"blocks/dense/kernel": (5, 1, 5)},
    ),
    "rematerialised": Kind(Many(nn.remat(Block)), (2, 3, 5), *_blocks((), ())),
}


@functools.cache
def layout(name: str) -> Layout:
    """Returns the layout of a kind."""
    return channel_layout(KINDS[name].model, jax.ShapeDtypeStruct(KINDS[name].shape, np.float32))


def random_params(layout: Layout, seed: int) -> dict:
    """Returns random parameters of a layout, with head and private leaves."""
    rng = np.random.default_rng(seed)
    shapes = dict((*layout.private, *layout.head))
    for layer in layout.layers:
        shapes.update(zip(layer.leaves, layer.shapes, strict=True))
    return unflatten({path: rng.standard_normal(shapes[path]).astype(np.float32) for path in sorted(shapes)})


def random_gates(layout: Layout, seed: int, share: float = 0.5) -> dict:
    """Returns random hard gates of a layout."""
    rng = np.random.default_rng(seed)
    return unflatten({layer.path: rng.random(layer.gate_shape) < share for layer in layout.layers})


def share_open(layout: Layout, seed: int, share: float = 0.4) -> dict:
    """Returns hard gates of which exactly that share of every layer's channels, rounded down, is open."""
    rng = np.random.default_rng(seed)
    gates = {}
    for layer in layout.layers:
        is_open = np.arange(layer.channels) < int(share * layer.channels)
        gates[layer.path] = rng.permutation(is_open).reshape(layer.gate_shape)
    return unflatten(gates)


def room(layout: Layout, gates: Mapping) -> dict[str, int]:
    """Returns a capacity for the open channels of every layer, and for one more where there is one."""
    opened = {path: int(np.sum(gate)) for path, gate in flatten(gates).items()}
    return {layer.path: min(layer.channels, opened[layer.path] + 1) for layer in layout.layers}


def kernel_channels(layer, leaf_path: str, leaf: np.ndarray) -> np.ndarray:
    """Returns a leaf as (channels, rest), by plain NumPy: an independent `to_columns`, turned."""
    if leaf.ndim == len(layer.gate_shape):
        axes = [axis for axis, size in enumerate(layer.gate_shape) if size == leaf.shape[axis] and size > 1]
        rest = [axis for axis in range(leaf.ndim) if axis not in axes]
        return np.transpose(leaf, axes + rest).reshape(layer.channels, -1)
    return leaf.reshape(layer.channels, -1)


def rows_of(layer, params: Mapping) -> np.ndarray:
    """Returns a layer's channels, (channels, parameters of a channel), by plain NumPy."""
    flat = flatten(params)
    return np.concatenate(
        [kernel_channels(layer, leaf, np.asarray(flat[leaf])) for leaf in layer.leaves], axis=1
    )
