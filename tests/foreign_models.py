"""Models that are not ours, each written as its user would write it, for test_plug_and_play.py."""

import flax.linen as nn
import jax
import jax.numpy as jnp

import cwps_jax as cwps


class ConvNet(nn.Module):
    """Convolutions with group norm, a hidden Dense layer, and a head with a name of its own."""

    @nn.compact
    def __call__(self, x):
        for features, stride in ((6, 1), (8, 2)):
            x = nn.Conv(features, (3, 3), stride, use_bias=stride == 1)(x)
            x = nn.relu(nn.GroupNorm(num_groups=2)(x))
        x = nn.relu(nn.Dense(10)(x.mean((1, 2))))
        return nn.Dense(3, name="classifier")(x)


class TransformerBlock(nn.Module):
    """Flax's own attention, an MLP, and LayerScale after each; `_` makes it fit for nn.scan."""

    @nn.compact
    def __call__(self, x, _=None):
        scale = lambda name: self.param(name, nn.initializers.constant(0.5), (x.shape[-1],))
        y = nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        x = x + scale("layer_scale_1") * y
        y = nn.gelu(nn.Dense(12, name="widen")(nn.LayerNorm()(x)))
        y = nn.Dense(x.shape[-1], name="narrow")(y)
        return x + scale("layer_scale_2") * y, None


class VisionTransformer(nn.Module):
    """Patches, class token, position embedding, and a block or, scanned and rematerialised, two."""

    scanned: bool = False

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(6, (4, 4), strides=4, name="patch_embed")(images)
        x = x.reshape(len(x), -1, x.shape[-1])
        token = self.param("cls_token", nn.initializers.normal(), (1, 1, x.shape[-1]))
        x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1)
        x = x + self.param("pos_embed", nn.initializers.normal(), (1, *x.shape[1:]))
        if self.scanned:
            lift = dict(variable_axes={"params": 0}, split_rngs={"params": True})
            x, _ = nn.scan(nn.remat(TransformerBlock), length=2, **lift)(name="blocks")(x, None)
        else:
            x, _ = TransformerBlock(name="block")(x)
        return nn.Dense(3, name="head")(nn.LayerNorm()(x)[:, 0])


class EncoderDecoder(nn.Module):
    """A segmentation network: grouped, depthwise and transposed convolutions, one output a pixel."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        norm = lambda x: nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = norm(nn.Conv(8, (3, 3), strides=2, use_bias=False, name="stem")(x))
        x = norm(nn.Conv(8, (3, 3), feature_group_count=2, name="grouped")(x))
        x = norm(nn.Conv(8, (3, 3), feature_group_count=8, use_bias=False, name="depthwise")(x))
        x = norm(nn.ConvTranspose(6, (2, 2), strides=(2, 2), name="up")(x))
        x = norm(nn.ConvTranspose(6, (3, 3), transpose_kernel=True, name="swapped")(x))
        return nn.Conv(1, (1, 1), name="head")(x)[..., 0]


class StandardisedConv(nn.Module):
    """A convolution whose kernel is standardised over its fan-in and scaled by a gain."""

    features: int

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, x.shape[-1], self.features))
        gain = self.param("gain", nn.initializers.ones, (self.features,))
        kernel = gain * jax.nn.standardize(kernel, axis=(0, 1, 2))
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )


@cwps.channel_rule(StandardisedConv)
def standardised_conv(module):
    return {"kernel": (-1,), "gain": (-1,)}


class Bilinear(nn.Module):
    """Products of pairs of inputs, with the outputs on the first axis of the weight."""

    features: int

    @nn.compact
    def __call__(self, x):
        size = x.shape[-1]
        weight = self.param("weight", nn.initializers.normal(0.3), (self.features, size, size))
        return jnp.einsum("...i,fij,...j->...f", x, weight, x)


@cwps.channel_rule(Bilinear)
def bilinear(module):
    return {"weight": (-3,)}


class OwnLayers(nn.Module):
    """Layers that no rule of the package's covers."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(StandardisedConv(6, name="conv")(x)).mean((1, 2))
        return nn.Dense(3, name="head")(Bilinear(8, name="pairs")(x))


class Stage(nn.Module):
    """A convolution and a norm, made in setup."""

    features: int

    def setup(self):
        self.conv = nn.Conv(self.features, (3, 3), strides=2)
        self.norm = nn.LayerNorm()

    def __call__(self, x):
        return nn.relu(self.norm(self.conv(x)))


class Encoder(nn.Module):
    """Stages in a list, and a projection in a module of modules."""

    widths: tuple[int, ...]

    def setup(self):
        self.stages = [Stage(width) for width in self.widths]
        self.project = nn.Sequential([nn.Dense(9), nn.tanh])

    def __call__(self, x):
        for stage in self.stages:
            x = stage(x)
        return self.project(x.mean((1, 2)))


class Classifier(nn.Module):
    """An encoder that is made elsewhere, and a head beside it."""

    encoder: nn.Module

    def setup(self):
        self.head = nn.Dense(3)

    def __call__(self, x):
        return self.head(self.encoder(x))


class MovingNorm(nn.Module):
    """A batch norm of one's own: not flax's, with its own momentum, a counter and statistics that stay."""

    momentum: float

    @nn.compact
    def __call__(self, x, train: bool):
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:])
        var = self.variable("batch_stats", "var", jnp.ones, x.shape[-1:])
        count = self.variable("batch_stats", "count", lambda: jnp.int32(0))
        prior = self.variable("batch_stats", "prior", jnp.ones, x.shape[-1:])
        used_mean, used_var = mean.value, var.value
        if train:
            used_mean, used_var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            if not self.is_initializing():
                mean.value = self.momentum * mean.value + (1 - self.momentum) * used_mean
                var.value = self.momentum * var.value + (1 - self.momentum) * used_var
                count.value += 1
        return prior.value * (x - used_mean) / jnp.sqrt(used_var + 1e-5)


class MovingNormNet(nn.Module):
    """Two convolutions, each with a norm: one's own, and flax's."""

    momentum: float = 0.99

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(6, (3, 3), use_bias=False, name="conv1")(x)
        x = nn.relu(MovingNorm(self.momentum, name="own")(x, train))
        x = nn.Conv(8, (3, 3), strides=2, use_bias=False, name="conv2")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="flax")(x))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


class Partitioned(nn.Module):
    """Layers whose parameters say how they are spread over devices, and a key with a name of its own."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        spread = nn.with_partitioning(nn.initializers.lecun_normal(), (None, None, None, "model"))
        x = nn.relu(nn.Conv(6, (3, 3), kernel_init=spread, name="conv")(x))
        if train:
            x *= 2.0 * jax.random.bernoulli(self.make_rng("drop_path"), 0.5, (len(x), 1, 1, 1))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


class Several(nn.Module):
    """Two inputs by place, the second a row of numbers, and batch norm."""

    @nn.compact
    def __call__(self, x, numbers, train: bool = False):
        x = nn.Conv(6, (3, 3), strides=2, name="conv")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x)).mean((1, 2))
        x = jnp.concatenate([x, nn.Dense(5, name="numbers")(numbers)], axis=-1)
        return nn.Dense(3, name="head")(nn.relu(x))


class Named(nn.Module):
    """Inputs by keyword alone, none of them called as in the data, and a scale at the model's top."""

    @nn.compact
    def __call__(self, *, pixels, clues, deterministic: bool):
        x = nn.relu(nn.Conv(6, (3, 3), strides=2)(pixels)).mean((1, 2))
        gain = self.param("gain", nn.initializers.ones, (6,))
        x = nn.Dropout(0.1)(gain * x, deterministic=deterministic)
        return nn.Dense(3, name="head")(jnp.concatenate([x, nn.relu(nn.Dense(5)(clues))], axis=-1))


@cwps.channel_rule(Named)
def named(module):
    return {"gain": None}


class Nested(nn.Module):
    """One nested input, made of modules of setup."""

    def setup(self):
        self.encoder = nn.Conv(6, (3, 3), strides=2)
        self.clue = nn.Dense(5)
        self.head = nn.Dense(3)

    def __call__(self, inputs):
        image, (numbers, _) = inputs["picture"], inputs["more"]
        parts = [nn.relu(self.encoder(image)).mean((1, 2)), nn.relu(self.clue(numbers))]
        return self.head(jnp.concatenate(parts, axis=-1))


class NormedHead(nn.Module):
    """A head with a norm before its outputs, and one of the outputs that has no parameters."""

    outputs: int

    @nn.compact
    def __call__(self, x, train: bool):
        norm = lambda name, **fields: nn.BatchNorm(use_running_average=not train, name=name, **fields)
        x = nn.Dense(self.outputs, name="out")(norm("before")(x))
        return norm("after", use_scale=False, use_bias=False)(x)


class NormedHeadNet(nn.Module):
    """A convolution with a norm, and a head with norms of its own."""

    outputs: int

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(6, (3, 3), strides=2, name="conv")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x)).mean((1, 2))
        return NormedHead(self.outputs, name="head")(x, train)


class TwoHeads(nn.Module):
    """A class and a number of each image, by two heads, as a dict."""

    classes: int = 3

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3), strides=2, name="conv")(x)).mean((1, 2))
        x = nn.relu(nn.Dense(8, name="hidden")(x))
        classes = nn.Dense(self.classes, name="classes")(x)
        return {"classes": classes, "size": nn.Dense(1, name="size")(x)[:, 0]}


class Outer(nn.Module):
    """Modules called as what wraps them might call its own."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(nn.relu(nn.Conv(6, (3, 3), name="model")(x)).mean((1, 2)))
