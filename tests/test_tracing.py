"""How deep each parameter is, from the order in which a model's modules run, and the decay by depth."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from cwps_jax import CwpsError, TrainConfig, channel_layout
from cwps_jax.core.trees import flatten
from cwps_jax.methods.optimizers import child_optimizer, scale_by_depth
from cwps_jax.tracing import cast_types, parameter_depths


class Residual(nn.Module):
    """A block with layers of its own."""

    @nn.compact
    def __call__(self, x):
        return x + nn.Dense(x.shape[-1])(nn.LayerNorm()(nn.Dense(x.shape[-1])(x)))


class Network(nn.Module):
    """Stem, three blocks whose names are not in the order of the alphabet, a transition, a norm, a head."""

    block: type[nn.Module] = Residual

    @nn.compact
    def __call__(self, images, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train, name="stem_norm")(
            nn.Conv(4, (3, 3), name="stem")(images)
        )
        x = self.block(name="stage1_block9")(x)
        x = self.block(name="stage1_block10")(x)
        x = self.block(name="stage2_block0")(nn.Conv(6, (1, 1), name="transition")(x))
        return nn.Dense(3, name="head")(nn.LayerNorm(name="norm")(x).mean((1, 2)))


class Transformer(nn.Module):
    """Modules declared in another order than they run in, and leaves of its own."""

    blocks: int = 12

    def setup(self):
        self.head = nn.Dense(3)
        self.norm = nn.LayerNorm()
        self.block = [zoo.Block() for _ in range(self.blocks)]
        self.cls_token = self.param("cls_token", nn.initializers.normal(), (1, 1, 5))
        self.embedding = nn.Dense(5)

    def __call__(self, x):
        x = self.embedding(x)
        x = jnp.concatenate([jnp.tile(self.cls_token, (len(x), 1, 1)), x], axis=1)
        for block in self.block:
            x, _ = block(x)
        return self.head(self.norm(x)[:, 0])


class Named(nn.Module):
    """Names by Flax; dropout has no parameters and so is no block."""

    @nn.compact
    def __call__(self, x):
        x = x + self.param("position", nn.initializers.zeros, x.shape[-1:])
        for _ in range(11):
            x = nn.Dropout(0.1, deterministic=True)(Residual()(x))
        return nn.Dense(2, name="head")(x)


class Wrapper(nn.Module):
    """Another model within, its blocks one level down."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(5, name="embedding")(x)
        return nn.Dense(2, name="head")(Named(name="encoder")(x))


class Scanned(nn.Module):
    """Blocks that are stacked in one module."""

    @nn.compact
    def __call__(self, x):
        lifted = nn.scan(zoo.Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=4)
        return nn.Dense(2, name="head")(lifted(name="blocks0")(x)[0])


# Model, shape of its input, and the depths by the first names of the paths.
DEPTHS = {
    "convolutional": (
        Network(),
        (1, 8, 8, 1),
        dict(stem=0, stem_norm=0, stage1_block9=1, stage1_block10=2, transition=2, stage2_block0=3, norm=3)
        | dict(head=4),
    ),
    "transformer": (
        Transformer(),
        (2, 3, 4),
        dict(cls_token=0, embedding=0, norm=12, head=13) | {f"block_{n}": n + 1 for n in range(12)},
    ),
    "named by flax": (
        Named(),
        (2, 4),
        dict(position=0, head=12) | {f"Residual_{n}": n + 1 for n in range(11)},
    ),
    "rematerialised": (
        Network(nn.remat(Residual)),
        (1, 8, 8, 1),
        dict(stem=0, stem_norm=0, stage1_block9=1, stage1_block10=2, transition=2, stage2_block0=3, norm=3)
        | dict(head=4),
    ),
    "wrapped": (
        Wrapper(),
        (2, 4),
        {"embedding": 0, "encoder/position": 0, "encoder/head": 11, "head": 12}
        | {f"encoder/Residual_{n}": n + 1 for n in range(11)},
    ),
    "scanned": (zoo.KINDS["scanned"].model, (2, 3, 5), dict(blocks=0)),
    "scanned, with a number": (Scanned(), (2, 3, 5), dict(blocks0=1, head=2)),
}


def depths_of(model, shape):
    inputs = jax.ShapeDtypeStruct(shape, jnp.float32)
    paths = flatten(jax.eval_shape(model.init, jax.random.key(0), inputs)["params"])
    return parameter_depths(model, inputs, head=[path for path in paths if path.startswith("head/")])


@pytest.mark.parametrize("name", DEPTHS)
def test_depths_follow_the_order_in_which_blocks_run(name):
    model, shape, wanted = DEPTHS[name]
    found, named = depths_of(model, shape), set()
    for path, depth in found.items():
        (prefix,) = [prefix for prefix in wanted if f"{path}/".startswith(f"{prefix}/")]
        assert depth == wanted[prefix], path
        named.add(prefix)
    assert named == wanted.keys()


def test_blocks_that_nothing_was_seen_of_are_refused():
    model = nn.jit(Named)()
    assert depths_of(model, (2, 4)) == depths_of(Named(), (2, 4))
    with pytest.raises(CwpsError, match="^Residual_0: it did not run while .* without nn.jit"):
        depths_of(model, (2, 4))  # it is compiled now, and not traced again


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_layer_decay_scales_the_whole_update_of_each_depth(optimizer):
    model, shape, _ = DEPTHS["convolutional"]
    layout = channel_layout(model, jax.ShapeDtypeStruct(shape, jnp.float32))
    params, depths = zoo.random_params(layout, 0), depths_of(model, shape)
    gradients = [zoo.random_params(layout, seed) for seed in (1, 2)]
    updates = {}
    for layer_decay in (1.0, 0.7):
        config = TrainConfig(optimizer=optimizer, weight_decay=0.1, layer_decay=layer_decay)
        rule = child_optimizer(config, layout, depths)
        state = rule.init(params)
        for gradient in gradients:  # momentum and moments are of gradients as they are
            update, state = rule.update(gradient, state, params)
        updates[layer_decay] = flatten(update)
        # Off it costs nothing, not even an empty state.
        assert len(state) == (3 if layer_decay == 1 else 4)  # the last one holds closed channels
    for path, update in updates[0.7].items():
        wanted = updates[1.0][path] * 0.7 ** (4 - depths[path])
        np.testing.assert_allclose(update, wanted, rtol=1e-6, err_msg=path)


def test_a_leaf_without_a_depth_is_refused():
    with pytest.raises(CwpsError, match="^b: layer_decay = 0.5 needs its depth"):
        scale_by_depth(0.5, {"a": 1}).update({"a": jnp.ones(1), "b": jnp.ones(1)}, ())


class Casting(nn.Module):
    """Kernels that are cast and nothing else, and kernels that are read in another way."""

    @nn.compact
    def __call__(self, images, train: bool = False):
        half = jnp.bfloat16
        x = nn.Conv(4, (3, 3), dtype=half, name="cast")(images).mean((1, 2))
        kept = nn.Dense(4, dtype=half, name="read_twice")
        x = kept(x) @ kept.variables["params"]["kernel"]
        x = nn.LayerNorm(dtype=half, name="norm")(nn.Dense(4, name="whole")(x))
        x = nn.remat(nn.Dense)(4, dtype=half, name="lifted")(x)
        return nn.Dense(3, dtype=half, name="head")(x)


def test_only_what_a_model_casts_and_never_reads_otherwise_has_a_cast_type():
    types = cast_types(Casting(), jax.ShapeDtypeStruct((1, 5, 5, 3), jnp.float32))
    assert set(types.values()) == {jnp.dtype(jnp.bfloat16)}
    assert sorted(types) == ["cast/bias", "cast/kernel", "head/bias", "head/kernel", "read_twice/bias"]
