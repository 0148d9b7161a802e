"""What is private: the default patterns, by the names that models give their leaves, and a user's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cwps_jax as cwps
from cwps_jax.core.patterns import PRIVATE, matches

TOKENS = ("cls", "cls_token", "class_token", "dist_token", "mask_token", "register_tokens", "backbone/cls")
POSITIONS = (
    *("pos_embed", "pos_embedding", "pos_emb", "position_embedding", "position_embeddings"),
    *("positional_embedding", "posembed_input/pos_embedding", "embeddings/position_embeddings"),
    *("absolute_pos_embed", "block0/attention/relative_position_bias_table"),
)
SCALES = ("gamma", "block0/gamma", "block0/gamma_1", "block0/layer_scale", "block0/layer_scale_1")
MORE_SCALES = ("blocks/ls1/gamma", "block0/layer_scale1/lambda1", "block0/layerscale_2")
LAYERS = (
    *("patch_embed/kernel", "patch_embed/proj/kernel", "embedding/kernel", "embedding/bias"),
    *("attention/query/kernel", "token_mixing/Dense_0/kernel", "tokens_to_logits/bias", "cls/kernel"),
    *("position/kernel", "gamma/kernel", "rescale/kernel", "multiscale/Conv_0/bias", "scale/kernel"),
)


@pytest.mark.parametrize("path", (*TOKENS, *POSITIONS, *SCALES, *MORE_SCALES))
def test_leaves_without_channels_are_private_by_the_names_they_usually_have(path):
    assert matches(path, PRIVATE)


@pytest.mark.parametrize("path", LAYERS)
def test_no_default_pattern_takes_a_layer_for_private(path):
    assert not matches(path, PRIVATE)


class Patches(nn.Module):
    """A patch embedding, word embeddings, and a layer."""

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(4, (2, 2), strides=2, name="embedding")(images).reshape(len(images), -1, 4)
        x = x + nn.Embed(4, 4, name="places")(jnp.arange(4))
        return nn.Dense(2, name="head")(nn.Dense(4, name="query")(x).mean(1))


IMAGES = jax.ShapeDtypeStruct((8, 4, 4, 1), jnp.float32)


def test_patches_are_a_layer_and_embeddings_are_private():
    layout = cwps.channel_layout(Patches(), IMAGES)
    assert [layer.path for layer in layout.layers] == ["embedding/kernel", "query/kernel"]
    assert layout.private_paths == ("places/embedding",)


def test_a_runs_own_pattern_that_matches_nothing_is_refused():
    images = np.zeros(IMAGES.shape, np.float32)
    split = {"image": images, "label": np.zeros(8, np.int32)}
    data = cwps.TaskData(split, split, split, classes=2)
    make = lambda pattern: cwps.make_trainer(
        Patches(), data, config=cwps.TrainConfig(batch_size=8, private=(pattern,))
    )
    assert make("query/*").layout.private_paths == ("places/embedding", "query/bias", "query/kernel")
    with pytest.raises(cwps.CwpsError, match=r"pattern '\*qury\*' matches no parameter"):
        make("*qury*")
    with pytest.raises(cwps.CwpsError, match=r"pattern '\*qury\*' matches no parameter"):
        cwps.channel_layout(Patches(), IMAGES, rules={"*qury*": (-1,)})
    with pytest.raises(cwps.CwpsError, match=r"pattern '\*qury\*' matches no parameter"):
        cwps.ChannelShared(Patches(), private=("*qury*",)).init(jax.random.key(0), images)
