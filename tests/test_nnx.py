"""Trees that did not come from Linen: an NNX model through its state, and a plain dict of arrays."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from flax import nnx

import cwps_jax as cwps
from cwps_jax.core.trees import flatten, unflatten

DEPTH = 11  # beyond ten, the order of numbers is not that of their names


class Network(nnx.Module):
    """A convolution without bias, batch norm, a token, a list of layers, and a head."""

    def __init__(self, seed: int):
        rngs = nnx.Rngs(seed)
        self.conv = nnx.Conv(1, 6, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.cls_token = nnx.Param(rngs.params.normal((1, 6)))
        self.layers = nnx.List([nnx.Linear(6, 6, rngs=rngs) for _ in range(DEPTH)])
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, images):
        x = nnx.relu(self.norm(self.conv(images))).mean((1, 2)) + self.cls_token
        for layer in self.layers:
            x = x + nnx.tanh(layer(x))
        return self.head(x)


def variables_of(model: nnx.Module) -> dict:
    """Returns the model's state as the package takes it: nested dicts of arrays, on the host."""
    collections = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
    return {
        name: jax.device_get(nnx.to_pure_dict(nnx.state(model, kind))) for name, kind in collections.items()
    }


def with_variables(model: nnx.Module, variables: dict) -> nnx.Module:
    """Puts variables of the package into the model."""
    for tree in variables.values():
        nnx.update(model, nnx.restore_int_paths(tree))
    return model


def layout_of(variables: dict) -> cwps.Layout:
    return cwps.layout_from_shapes(variables["params"], axes={"conv/kernel": (-1,)})


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(8, 5, 5, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def parent(images) -> Network:
    """The pre-trained model, with statistics that are not at their start."""
    model = Network(0)
    model.train()
    model(3 * images)
    model.eval()
    return model


@pytest.fixture(scope="module")
def child(images) -> Network:
    model = Network(1)
    model.train()
    model(images)
    model.eval()
    return model


@pytest.fixture
def gates(parent) -> dict:
    return zoo.random_gates(layout_of(variables_of(parent)), 3)


def test_layers_and_private_leaves_are_found(parent):
    variables = variables_of(parent)
    layout = layout_of(variables)
    names = ["conv/kernel", *(f"layers/{number}/kernel" for number in range(DEPTH))]
    assert {layer.path: layer.channels for layer in layout.layers} == dict.fromkeys(names, 6)
    assert set(layout.private_paths) == {"cls_token", "norm/bias", "norm/scale"}
    assert layout.head_paths == ("head/bias", "head/kernel")
    with pytest.raises(cwps.CwpsError, match=r"conv/kernel: no rule .*axes={'conv/kernel': \(-1,\)}"):
        cwps.layout_from_shapes(variables["params"])


def test_mixing_the_state_is_choosing_outputs_layer_by_layer(parent, child, gates, images):
    variables = variables_of(child)
    params = cwps.mix(variables_of(parent)["params"], variables["params"], gates)
    mixed = with_variables(Network(2), {**variables, "params": params})
    mixed.eval()

    def chosen(of, gate, x):
        own, theirs = (of(model)(x) for model in (child, parent))
        return jnp.where(gate.ravel(), own, theirs)

    x = chosen(lambda model: model.conv, gates["conv"]["kernel"], images)
    x = nnx.relu(child.norm(x)).mean((1, 2)) + child.cls_token
    for number in range(DEPTH):
        gate = gates["layers"][str(number)]["kernel"]
        x = x + nnx.tanh(chosen(lambda model, number=number: model.layers[number], gate, x))
    np.testing.assert_allclose(mixed(images), child.head(x), rtol=1e-5, atol=1e-6)


def test_a_stored_task_goes_back_into_the_model_bit_by_bit(parent, child, gates, images, tmp_path):
    pretrained, own = variables_of(parent), variables_of(child)
    params = jax.device_get(cwps.mix(pretrained["params"], own["params"], gates))
    pool = cwps.Pool.create(tmp_path, pretrained, layout_of(pretrained))
    pool.add("task", params, {"batch_stats": own["batch_stats"]}, gates, {}, ("pretrained",), {})
    stored = cwps.Pool.open(tmp_path)
    wanted = with_variables(Network(2), {**own, "params": params})
    found = with_variables(Network(3), stored.effective("task"))
    start = with_variables(Network(4), stored.effective("pretrained"))
    for model in (wanted, found, start):
        model.eval()
    np.testing.assert_array_equal(found(images), wanted(images))
    np.testing.assert_array_equal(start(images), parent(images))
    assert 0 < stored.count("task").ratio < 1


def test_the_parent_takes_the_channels_of_a_stored_task_where_it_is_nearest(
    parent, child, gates, moved, tmp_path
):
    pretrained, own = variables_of(parent), variables_of(child)
    params = jax.device_get(cwps.mix(pretrained["params"], own["params"], gates))
    pool = cwps.Pool.create(tmp_path, pretrained, layout_of(pretrained))
    pool.add("task", params, {}, gates, {}, ("pretrained",), {})
    found, sources = cwps.composite_parent(moved(params, 1e-4, 0), pool, cwps.Search(distance="l2"))
    for path, gate in flatten(gates).items():
        np.testing.assert_array_equal(sources[path].model, gate.ravel(), err_msg=path)
    layers = {path: leaf for path, leaf in flatten(params).items() if path in pool.layout.layer_paths}
    chex.assert_trees_all_equal(found, unflatten(layers))


def test_nnx_attention_has_the_layout_of_linens():
    attention = nnx.MultiHeadAttention(2, 5, 6, decode=False, rngs=nnx.Rngs(0))
    params = {"attention": nnx.to_pure_dict(nnx.state(attention, nnx.Param))}
    assert cwps.layout_from_shapes(params) == zoo.layout("attention")


def network(params, x):
    for name in ("0", "1"):
        x = jnp.tanh(x @ params[name]["w"] + params[name]["b"])
    return x @ params["head"]["w"]


def test_a_dict_of_arrays_with_names_of_its_own():
    """Research code without any module: its leaves are called w and b."""
    rng = np.random.default_rng(0)
    make = lambda: {
        **{name: {"w": rng.normal(size=(4, 4)), "b": rng.normal(size=4)} for name in ("0", "1")},
        "head": {"w": rng.normal(size=(4, 2))},
    }
    parent, child = jax.tree.map(np.float32, (make(), make()))
    with pytest.raises(cwps.CwpsError, match=r"^0/w: no rule for a leaf of shape \(4, 4\).*axes={'0/w'"):
        cwps.layout_from_shapes(parent)
    layout = cwps.layout_from_shapes(parent, axes={"*/w": (-1,), "*/b": (-1,)})
    assert [layer.leaves for layer in layout.layers] == [("0/w", "0/b"), ("1/w", "1/b")]
    gates = zoo.random_gates(layout, 1)
    x = expected = rng.normal(size=(3, 4)).astype(np.float32)
    for name in ("0", "1"):
        own, theirs = (expected @ tree[name]["w"] + tree[name]["b"] for tree in (child, parent))
        expected = np.tanh(np.where(gates[name]["w"], own, theirs))
    found = network(cwps.mix(parent, child, gates), x)
    np.testing.assert_allclose(found, expected @ child["head"]["w"], rtol=1e-5, atol=1e-6)


def test_what_stands_beside_a_private_kernel_is_private():
    dense = {"kernel": np.ones((3, 4)), "bias": np.ones(4)}
    tree = {"dense": dense, "query": dense, "head": dense}
    for options in ({"private": ("query/kernel",)}, {"axes": {"query/kernel": None}}):
        layout = cwps.layout_from_shapes(tree, **options)
        assert layout.layer_paths == ("dense/kernel", "dense/bias")
        assert layout.private_paths == ("query/bias", "query/kernel")


def test_a_pattern_that_matches_nothing_is_refused():
    tree = {"dense": {"kernel": np.ones((3, 4))}}
    for options in ({"private": ("*query*",)}, {"axes": {"*query*": (-1,)}}):
        with pytest.raises(cwps.CwpsError, match=r"pattern '\*query\*' matches no parameter"):
            cwps.layout_from_shapes(tree, **options)
