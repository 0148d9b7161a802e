"""`ChannelShared`, the Linen door, against the tree door: the same values and the same gradients."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cwps_jax import ChannelShared, channel_layout, gates, mix
from cwps_jax.core.trees import flatten, select, unflatten


class Regularised(nn.Module):
    """A convolutional model with batch norm and dropout, written as its user would."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(4, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Dropout(0.5, deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(3, name="head")(nn.Dense(5)(x))


class Transformer(nn.Module):
    """One block with flax's own attention, and a class token."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        token = self.param("cls_token", nn.initializers.normal(), (1, 1, x.shape[-1]))
        x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1)
        x = x + nn.MultiHeadDotProductAttention(2, qkv_features=6)(nn.LayerNorm()(x))
        x = x + nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(7)(nn.LayerNorm()(x))))
        return nn.Dense(3, name="head")(x[:, 0])


MODELS = {
    "tiny": (None, (4, 8, 8, 1)),
    "regularised": (Regularised(), (4, 6, 6, 2)),
    "transformer": (Transformer(), (4, 3, 5)),
}


class OwnKey(nn.Module):
    """Says which key a module at the top gets for its first dropout."""

    @nn.compact
    def __call__(self):
        return jax.random.key_data(self.make_rng("dropout"))


@pytest.fixture(scope="module", params=MODELS)
def shared(request, tiny_model, moved):
    """(net, plain model, variables with a moved parent and random scores, images)."""
    model, shape = MODELS[request.param]
    model = model or tiny_model
    net = ChannelShared(model)
    images = jax.random.normal(jax.random.key(1), shape)
    variables = jax.device_get(jax.jit(net.init)(jax.random.key(0), images))
    variables["parent"] = moved(variables["parent"], 0.3, 1)
    variables["masks"] = moved(variables["masks"], 1.0, 2)
    return net, model, variables, images


def test_init_makes_the_collections(shared):
    net, model, _, images = shared
    variables = jax.jit(net.init)(jax.random.key(0), images)
    plain = jax.eval_shape(model.init, jax.random.key(0), images)
    layout = channel_layout(model, images)
    assert variables.keys() == {"params", "parent", "masks"} | plain.keys()
    shapes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    assert shapes(variables["params"]) == shapes(plain["params"])
    # The parent is a copy of the child's layers; there is one score per channel.
    child = select(variables["params"], layout.layer_paths)
    assert flatten(variables["parent"]).keys() == flatten(child).keys()
    chex.assert_trees_all_equal(variables["parent"], child)
    masks = flatten(variables["masks"])
    assert {path: leaf.shape for path, leaf in masks.items()} == {
        layer.path: layer.gate_shape for layer in layout.layers
    }


@pytest.mark.parametrize("temperature", [None, 1.7])
@pytest.mark.parametrize("train", [False, True])
def test_values_and_gradients_are_those_of_the_mixed_tree(shared, temperature, train):
    net, model, variables, images = shared
    other = {key: variables[key] for key in variables.keys() - {"params", "parent", "masks"}}
    key = jax.random.key(3)
    # The plain model gets the very key that a module at the top draws.
    own_key = jax.random.wrap_key_data(OwnKey().apply({}, rngs={"dropout": key}))
    mutable = list(other) if train else []
    direction = jax.random.normal(jax.random.key(4), (len(images), 3))

    def linen(params, masks, parent):
        tree = {**variables, "params": params, "masks": masks, "parent": parent}
        logits, changed = net.apply(
            tree, images, train=train, temperature=temperature, mutable=mutable, rngs={"dropout": key}
        )
        return jnp.sum(logits * direction), (logits, dict(changed))

    def tree(params, masks, parent):
        effective = mix(parent, params, gates(masks, temperature))
        logits, changed = model.apply(
            {"params": effective, **other}, images, train=train, mutable=mutable, rngs={"dropout": own_key}
        )
        return jnp.sum(logits * direction), (logits, dict(changed))

    @jax.jit
    def both(*args):
        return [jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True)(*args) for f in (linen, tree)]

    ours, theirs = jax.device_get(both(variables["params"], variables["masks"], variables["parent"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)
    (_, (_, changed)), (of_params, of_masks, of_parent) = ours
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_parent))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(of_masks)) == (temperature is not None)
    assert np.any(of_params["head"]["kernel"])
    if train and other:
        before, after = flatten(other), flatten(changed)
        assert before.keys() == after.keys()
        assert all(np.any(before[path] != after[path]) for path in before)


def test_the_temperature_is_traced(shared):
    net, _, variables, images = shared
    traced = []

    @jax.jit
    def apply(temperature):
        traced.append(1)
        soft = net.apply(variables, images, temperature=temperature)
        return soft, net.apply(variables, images)

    (soft, _), (sharp, hard) = apply(0.01), apply(100.0)
    assert len(traced) == 1
    assert np.abs(soft - hard).max() > 10 * np.abs(sharp - hard).max()


def test_gates_all_off_is_the_parents_backbone_and_all_on_the_childs(shared):
    net, model, variables, images = shared
    other = {key: variables[key] for key in variables.keys() - {"params", "parent", "masks"}}
    child = flatten(variables["params"])
    apply, plain = jax.jit(net.apply), jax.jit(model.apply)
    for score, params in ((1.0, child), (-1.0, {**child, **flatten(variables["parent"])})):
        masks = jax.tree.map(lambda leaf, score=score: np.full_like(leaf, score), variables["masks"])
        ours = apply({**variables, "masks": masks}, images)
        theirs = plain({"params": unflatten(params), **other}, images)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_dropout_follows_its_key():
    net = ChannelShared(Regularised())
    images = jax.random.normal(jax.random.key(1), (4, 6, 6, 2))
    variables = jax.jit(net.init)(jax.random.key(0), images)

    @jax.jit
    def logits(key):
        rngs = {"dropout": jax.random.key(key)}
        return net.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)[0]

    np.testing.assert_array_equal(logits(0), logits(0))
    assert np.any(logits(0) != logits(1))


def test_init_in_training_mode_leaves_the_statistics_at_their_start(tiny_model):
    images = 3 + jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    stats = jax.jit(ChannelShared(tiny_model).init, static_argnames="train")(
        jax.random.key(0), images, train=True
    )["batch_stats"]
    np.testing.assert_array_equal(stats["norm"]["mean"], 0.0)
    np.testing.assert_array_equal(stats["norm"]["var"], 1.0)


def test_what_a_model_sows_comes_back():
    class Sowing(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(4)(x)
            self.sow("intermediates", "features", x)
            return nn.Dense(2, name="head")(x)

    net, inputs = ChannelShared(Sowing()), jnp.ones((1, 3))
    variables = jax.jit(net.init)(jax.random.key(0), inputs)
    variables = {key: tree for key, tree in variables.items() if key != "intermediates"}
    _, sown = net.apply(variables, inputs, mutable=["intermediates"])
    plain = {"params": variables["params"]}  # all gates are alike: the parent is the child's copy
    _, wanted = Sowing().apply(plain, inputs, mutable=["intermediates"])
    jax.tree.map(np.testing.assert_allclose, dict(sown), dict(wanted))
