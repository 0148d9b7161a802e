"""Which leaves have output channels, and on which axes."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from cwps_jax import channel_layout, channel_rule
from cwps_jax.core import channels, foreign
from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.errors import CwpsError


def shapes_of(model, *shape):
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
    return {path: leaf.shape for path, leaf in flatten(variables["params"]).items()}


def layout_of(model, *shape, **options):
    return channel_layout(model, jax.ShapeDtypeStruct(shape, jnp.float32), **options)


def check_partition(layout, shapes):
    """Every leaf is in one of the three places, with its shape; the counts add up to all parameters."""
    places = [dict(layout.private), dict(layout.head)]
    places += [dict(zip(layer.leaves, layer.shapes, strict=True)) for layer in layout.layers]
    together = [leaf for place in places for leaf in place.items()]
    assert sorted(together) == sorted(shapes.items())
    assert layout.backbone_parameters + layout.head_parameters == sum(map(math.prod, shapes.values()))
    for layer in layout.layers:
        assert layer.parameters == sum(math.prod(shape) for shape in layer.shapes)
        assert layer.channels * layer.channel_parameters == layer.parameters


@pytest.mark.parametrize("name", zoo.KINDS)
def test_gate_of_each_kind_of_layer(name):
    kind, layout = zoo.KINDS[name], zoo.layout(name)
    assert {layer.path: layer.gate_shape for layer in layout.layers} == kind.gate_shapes
    check_partition(layout, shapes_of(kind.model, *kind.shape))
    assert all("norm" in path for path in layout.private_paths)


@pytest.mark.parametrize("name", zoo.KINDS)
def test_one_channel_of_the_weights_is_one_channel_of_the_output(name):
    # The meaning of "output channel": change one row of kernel and bias, one channel of the layer's own
    # output changes and no other.
    kind, layout = zoo.KINDS[name], zoo.layout(name)
    inputs = jnp.asarray(np.random.default_rng(1).standard_normal(kind.shape), jnp.float32)
    flat = flatten(zoo.random_params(layout, 0))

    def outputs(leaves):
        params = unflatten({**flat, **leaves})
        _, captured = kind.model.apply(
            {"params": params}, inputs, capture_intermediates=True, mutable=["intermediates"]
        )
        return flatten(captured["intermediates"])

    def perturbed(layer, moves):
        moved = lambda leaf, shape: channels.from_columns(
            channels.to_columns(flat[leaf], layer.gate_shape) + 1.5 * moves, layer.gate_shape, shape
        )
        leaves = {leaf: moved(leaf, shape) for leaf, shape in zip(layer.leaves, layer.shapes, strict=True)}
        owner = layer.path.rpartition("/")[0]
        output = outputs(leaves)[f"{owner}/__call__".lstrip("/")][0]
        axes = kind.channel_axes[layer.path]
        output = jnp.moveaxis(output, axes, range(len(axes)))
        return output.reshape(layer.channels, -1)

    @jax.jit
    def changes():
        found = {}
        for layer in layout.layers:
            moves = jnp.concatenate([jnp.zeros((1, layer.channels)), jnp.eye(layer.channels)])
            found[layer.path] = jax.vmap(functools.partial(perturbed, layer))(moves)
        return found

    for layer in layout.layers:
        base, *each = np.asarray(changes()[layer.path])
        changed = np.abs(np.array(each) - base).max(axis=-1) > 1e-3
        expected = np.eye(layer.channels, dtype=bool)
        if kind.copies:  # what comes after a changed copy sees other inputs
            copy = np.arange(layer.channels) // (layer.channels // layer.gate_shape[0])
            changed &= copy[:, None] >= copy[None, :]
        np.testing.assert_array_equal(changed, expected, err_msg=layer.path)


@pytest.mark.parametrize("name", zoo.KINDS)
def test_columns_are_the_channels_and_go_back_to_the_leaves(name):
    layout = zoo.layout(name)
    flat = flatten(zoo.random_params(layout, 0))
    for layer in layout.layers:
        for leaf, shape in zip(layer.leaves, layer.shapes, strict=True):
            columns = channels.to_columns(flat[leaf], layer.gate_shape)
            np.testing.assert_array_equal(columns.T, zoo.kernel_channels(layer, leaf, flat[leaf]))
            np.testing.assert_array_equal(channels.from_columns(columns, layer.gate_shape, shape), flat[leaf])


@pytest.mark.filterwarnings("ignore:SelfAttention will be deprecated")
def test_self_attention_has_the_layout_of_attention():
    class Old(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.SelfAttention(2, qkv_features=6, name="attention")(x)

    assert layout_of(Old(), 2, 3, 5) == zoo.layout("attention")


def test_norms_and_embeddings_are_private():
    class Norms(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            x = nn.Embed(7, 4, name="embed")(tokens)
            for index, norm in enumerate((nn.LayerNorm, nn.RMSNorm, nn.InstanceNorm)):
                x = norm(name=f"norm{index}")(x)
            x = nn.GroupNorm(num_groups=2, name="norm3")(x)
            x = nn.BatchNorm(use_running_average=True, name="norm4")(x)
            return nn.Dense(4, name="dense")(x)

    tokens = jax.ShapeDtypeStruct((2, 3), jnp.int32)
    layout = channel_layout(Norms(), tokens)
    assert layout.layer_paths == ("dense/kernel", "dense/bias")
    assert "embed/embedding" in layout.private_paths
    assert {path.split("/")[0] for path in layout.private_paths} == {"embed", *(f"norm{i}" for i in range(5))}


class Tokens(nn.Module):
    """A model with leaves of its own, as vision transformers have."""

    own: str = "cls_token"

    @nn.compact
    def __call__(self, x):
        x = x + self.param(self.own, nn.initializers.zeros, (1, 1, 4))
        x = x + self.param("pos_embedding", nn.initializers.zeros, (1, 3, 4))
        return nn.Dense(2, name="head")(nn.Dense(4, name="dense")(x))


def test_class_token_and_position_embedding_are_private_and_the_head_is_the_head():
    layout = layout_of(Tokens(), 2, 3, 4)
    assert layout.private_paths == ("cls_token", "pos_embedding")
    assert layout.head_paths == ("head/bias", "head/kernel")
    check_partition(layout, shapes_of(Tokens(), 2, 3, 4))


def test_private_patterns_and_other_heads_are_the_users_choice():
    layout = layout_of(Tokens(), 2, 3, 4, private=("cls*", "pos*", "head/*"), head="dense")
    assert layout.layers == ()
    assert layout.private_paths == ("cls_token", "head/bias", "head/kernel", "pos_embedding")
    assert layout.head_paths == ("dense/bias", "dense/kernel")


def test_a_models_own_leaf_without_a_pattern_is_refused():
    with pytest.raises(CwpsError, match=r"^mystery: no channel rule .*Tokens.*private="):
        layout_of(Tokens("mystery"), 2, 3, 4)


def test_a_private_bias_beside_a_shared_kernel_is_refused():
    with pytest.raises(CwpsError, match="dense/bias: private, but it has the channels of dense/kernel"):
        layout_of(Tokens(), 2, 3, 4, private=("cls*", "pos*", "dense/bias"))


class Bilinear(nn.Module):
    """A user's layer that no rule of ours covers: channels first."""

    features: int = 3

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.normal(), (self.features, x.shape[-1], x.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return jnp.einsum("...i,fij,...j->...f", x, kernel, x) + bias


class UsersModel(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(Bilinear(name="bilinear")(x))


def test_a_layer_without_a_rule_is_refused_with_its_path_and_the_way_out():
    with pytest.raises(CwpsError) as refusal:
        layout_of(UsersModel(), 2, 4)
    assert str(refusal.value).startswith("bilinear/bias: ")
    assert "@cwps_jax.channel_rule(Bilinear)" in str(refusal.value)
    assert "private=" in str(refusal.value)


def test_a_users_rule_is_followed_by_subclasses_and_copies_too(own_rules):
    @channel_rule(Bilinear)
    def rule(module):
        return {"kernel": (-3,), "bias": (-1,)}

    class Trilinear(Bilinear):
        """Inherits the rule."""

    (layer,) = layout_of(UsersModel(), 2, 4).layers
    assert (layer.path, layer.gate_shape) == ("bilinear/kernel", (3, 1, 1))
    assert layout_of(Trilinear(), 2, 4).layers[0].gate_shape == (3, 1, 1)
    copies = nn.vmap(Bilinear, variable_axes={"params": 0}, split_rngs={"params": True})
    assert layout_of(copies(), 5, 2, 4).layers[0].gate_shape == (5, 3, 1, 1)


def test_rules_by_path_win_over_rules_by_module():
    layout = layout_of(UsersModel(), 2, 4, rules={"bilinear/kernel": (-3,), "bilinear/bias": (-1,)})
    assert [layer.gate_shape for layer in layout.layers] == [(3, 1, 1)]
    layout = layout_of(UsersModel(), 2, 4, rules={"bilinear/*": None})
    assert layout.private_paths == ("bilinear/bias", "bilinear/kernel")


def test_copies_on_another_axis_than_the_leading_one_are_refused():
    copies = nn.vmap(nn.Dense, variable_axes={"params": 1}, split_rngs={"params": True})
    with pytest.raises(CwpsError, match="not stacked on the leading axis"):
        layout_of(copies(5), 2, 4, 3)


@pytest.mark.parametrize(
    ("kernel", "bias", "axes"),
    [
        ((3, 5), (5,), (-1,)),
        ((3, 5), None, (-1,)),
        ((5, 5), (5,), (-1,)),
        ((3, 3, 4, 5), (5,), (-1,)),
        ((3, 3, 1, 8), (8,), (-1,)),
        ((3, 3, 5, 4), (5,), (-2,)),
        ((8, 2, 4), (2, 4), (-2, -1)),
        ((2, 4, 8), (8,), (-1,)),
        ((3, 8, 4), (3, 4), (-3, -1)),
        ((3, 8, 2, 4), (3, 2, 4), (-4, -2, -1)),
        ((3, 2, 4, 8), (3, 8), (-4, -1)),
        ((6, 3, 3, 4, 5), (6, 5), (-5, -1)),
    ],
)
def test_foreign_leaves_with_one_reading_are_accepted(kernel, bias, axes):
    found = foreign.axes_from_shapes(kernel, bias, "blocks/kernel")
    rank = len(kernel)
    assert sorted(axis % rank for axis in found) == sorted(axis % rank for axis in axes)


@pytest.mark.parametrize(
    ("kernel", "bias", "why"),
    [
        ((3, 8, 4), None, "no rule"),  # scanned Dense, or an attention projection?
        ((2, 2, 4), (2, 4), "several readings"),  # attention of width 2, or two scanned Denses?
        ((3, 3, 5, 5), (5,), "several readings"),  # is the transposed convolution's kernel swapped?
        ((3, 4, 4, 2), (3, 4, 2), "several readings"),  # 3 x 4 Denses, or scanned attention of width 4?
        ((3, 5), (3,), "no rule"),
        ((7,), None, "no rule"),
    ],
)
def test_foreign_leaves_with_several_readings_or_none_are_refused(kernel, bias, why):
    with pytest.raises(CwpsError, match=rf"^blocks/kernel: {why} .*axes="):
        foreign.axes_from_shapes(kernel, bias, "blocks/kernel")


def test_a_layout_from_axes_equals_the_one_from_modules():
    kind = zoo.KINDS["scanned"]
    params = zoo.random_params(zoo.layout("scanned"), 0)
    shapes = shapes_of(kind.model, *kind.shape)
    axes = {path: None for path in shapes if "norm" in path}
    for path in shapes.keys() - axes.keys():
        if path.endswith("kernel"):
            bias = path.replace("kernel", "bias")
            axes[path] = foreign.axes_from_shapes(shapes[path], shapes[bias], path)
            axes[bias] = tuple(range(-len(shapes[bias]), 0))
    assert channels.layout_from_axes(params, axes) == zoo.layout("scanned")
    del axes["blocks/dense/bias"]
    with pytest.raises(CwpsError, match="blocks/dense/bias: no rule"):
        channels.layout_from_axes(params, axes)


def test_a_layout_from_shapes_equals_the_one_from_modules(tiny_variables, tiny_layout):
    assert foreign.layout_from_shapes(tiny_variables["params"], axes={"conv1/kernel": (-1,)}) == tiny_layout
    with pytest.raises(CwpsError, match="conv1/kernel: no rule"):  # without a bias its shape cannot tell
        foreign.layout_from_shapes(tiny_variables["params"])
    scanned = zoo.random_params(zoo.layout("scanned"), 0)
    assert foreign.layout_from_shapes(scanned, private=("*norm*",)) == zoo.layout("scanned")
    with pytest.raises(CwpsError, match="norm.*: no rule"):  # a scanned norm's scale is a matrix
        foreign.layout_from_shapes(scanned)


def test_a_module_of_several_kernels_and_a_bias_is_refused():
    params = {"cell": {"a": np.zeros((3, 4)), "b": np.zeros((3, 4)), "bias": np.zeros(4)}}
    axes = {"cell/a": (-1,), "cell/b": (-1,), "cell/bias": (-1,)}
    with pytest.raises(CwpsError, match="cell: it owns several kernels"):
        channels.layout_from_axes(params, axes)
    del params["cell"]["bias"]
    layout = channels.layout_from_axes(params, {path: axes[path] for path in ("cell/a", "cell/b")})
    assert layout.layer_paths == ("cell/a", "cell/b")


def test_a_gate_that_does_not_belong_to_the_parameters_is_refused():
    params = {"dense": {"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)}}
    with pytest.raises(CwpsError, match=r"dense/kernel: a gate of shape \(1, 5\) does not fit \(3, 4\)"):
        channels.gates_by_leaf({"dense": {"kernel": jnp.zeros((1, 5))}}, params)
    with pytest.raises(CwpsError, match="no parameters at other/kernel"):
        channels.gates_by_leaf({"other": {"kernel": jnp.zeros((1, 4))}}, params)


def test_a_summary_says_what_can_be_shared(tiny_layout):
    lines = [line.split() for line in tiny_layout.summary().splitlines()]
    assert lines[0] == ["layer", "shape", "channels", "parameters"]
    assert [line[0] for line in lines[1 : 1 + len(tiny_layout.layers)]] == [
        layer.path for layer in tiny_layout.layers
    ]
    shared, private, head = (int(line[-1].replace(",", "")) for line in lines[-3:])
    assert shared + private == tiny_layout.backbone_parameters and head == tiny_layout.head_parameters
