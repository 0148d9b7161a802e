"""Weight gradients of open channels alone: equal to the dense form's, and less work."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from dense import DenseCwps

from cwps_jax import TrainConfig, channel_layout, methods, mix
from cwps_jax.active_gradient import active_gradients
from cwps_jax.core.compact import pack, placements, unpack
from cwps_jax.core.trees import flatten, select, unflatten
from cwps_jax.methods.method import Moment
from cwps_jax.methods.network import Network
from cwps_jax.models.resnet import ResNet
from cwps_jax.models.squeezenet import SqueezeNet
from cwps_jax.parallel import Compiled
from cwps_jax.train.objectives import accuracy, cross_entropy
from cwps_jax.train.state import begun_state, make_plan, start_state
from cwps_jax.train.step import make_step
from cwps_jax.train.trainer import NO_POOL


@dataclasses.dataclass(frozen=True)
class Case:
    """A layer, the shape of its input, and whether its gradient is taken for open channels alone."""

    model: nn.Module
    shape: tuple[int, ...]
    narrow: bool = True
    tolerance: float = 1e-5


class Twice(nn.Module):
    """One layer that is called twice, between layers that are called once."""

    @nn.compact
    def __call__(self, x):
        shared = nn.Dense(24, name="shared")
        return nn.Dense(16, name="after")(nn.tanh(shared(nn.tanh(shared(x)))))


class Tied(nn.Module):
    """A layer whose kernel is used outside of it too."""

    @nn.compact
    def __call__(self, x):
        widen = nn.Dense(32, use_bias=False, name="widen")
        return nn.tanh(widen(x)) @ widen.variables["params"]["kernel"].T


class Attending(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(4, qkv_features=32, name="attention")(x)


class Blocks(nn.Module):
    """A block under nn.scan, nn.remat or nn.jit."""

    lift: str

    @nn.compact
    def __call__(self, x):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, _=None):
                return x + nn.tanh(nn.Dense(24, name="dense")(x)), None

        lifted = {
            "scan": lambda: nn.scan(
                Block, length=3, variable_axes={"params": 0}, split_rngs={"params": True}
            )(name="block"),
            "remat": lambda: nn.remat(Block)(name="block"),
            "jit": lambda: nn.jit(Block)(name="block"),
        }
        return lifted[self.lift]()(x, None)[0]


class Squashed(nn.Module):
    """A Dense layer that is given a function of its kernel by nn.map_variables."""

    @nn.compact
    def __call__(self, x):
        squash = lambda variables: jax.tree.map(jnp.tanh, variables)
        lifted = nn.map_variables(nn.Dense, "params", squash, init=self.is_initializing(), mutable=True)
        return lifted(32, use_bias=False, name="dense")(x)


class Own(nn.Dense):
    """A user's Dense, which standardises its kernel."""

    @nn.compact
    def __call__(self, inputs):
        kernel = self.param("kernel", self.kernel_init, (inputs.shape[-1], self.features))
        return inputs @ jax.nn.standardize(kernel, axis=0)


image = (4, 9, 9, 24)
CASES = {
    "dense": Case(nn.Dense(32), (6, 8)),
    "dense of tokens": Case(nn.Dense(32, use_bias=False), (32, 5, 24)),
    "dense general": Case(nn.DenseGeneral((4, 8), axis=(-2, -1)), (32, 5, 3, 2)),
    "attention": Case(Attending(), (2, 5, 16), tolerance=1e-4),  # its softmax cancels
    "conv": Case(nn.Conv(32, (3, 3)), image),
    "conv 1x1 without bias": Case(nn.Conv(32, (1, 1), use_bias=False), image),
    "conv strided": Case(nn.Conv(32, (3, 3), 2, padding=1), image),
    "conv dilated": Case(nn.Conv(32, (3, 3), kernel_dilation=2, padding="VALID"), image),
    "conv input dilated": Case(nn.Conv(32, (3, 3), padding=2, input_dilation=2), image),
    "conv uneven": Case(nn.Conv(32, (5, 2), (3, 1), padding=((2, 1), (0, 3))), image),
    "conv unevenly padded": Case(nn.Conv(32, (4, 2), padding=((2, 1), (0, 3))), image),
    "conv of few inputs": Case(nn.Conv(32, (3, 3)), (4, 9, 9, 3)),
    "conv circular": Case(nn.Conv(32, (3, 3), padding="CIRCULAR"), image),
    "conv 1d": Case(nn.Conv(32, 3, padding="CAUSAL"), (4, 9, 24)),
    "conv of two batch axes": Case(nn.Conv(32, (3, 3)), (2, *image)),
    # Sums in another order, rounded to eight bits.
    "conv in bfloat16": Case(nn.Conv(32, (3, 3), dtype=jnp.bfloat16), image, tolerance=2e-2),
    "dense in bfloat16": Case(nn.Dense(32, dtype=jnp.bfloat16), (32, 8), tolerance=2e-2),
    "called twice": Case(Twice(), (6, 24)),
    "tied": Case(Tied(), (6, 8)),
    "grouped": Case(nn.Conv(32, (3, 3), feature_group_count=2), image, narrow=False),
    "depthwise": Case(nn.Conv(24, (3, 3), feature_group_count=24), image, narrow=False),
    "masked": Case(nn.Conv(32, (1, 1), mask=np.tri(24, 32)[None, None]), image, narrow=False),
    "transposed": Case(nn.ConvTranspose(32, (3, 3), (2, 2), transpose_kernel=True), image, narrow=False),
    "of each item": Case(nn.DenseGeneral(32, batch_dims=(0,)), (2, 5, 8), narrow=False),
    "scanned": Case(Blocks("scan"), (6, 24), narrow=False),
    "rematerialised": Case(Blocks("remat"), (6, 24), narrow=False),
    "jitted": Case(Blocks("jit"), (6, 24), narrow=False),
    "squashed": Case(Squashed(), (6, 8), narrow=False),
    "a user's": Case(Own(32), (6, 8), narrow=False),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_dense_forms(name):
    case = CASES[name]
    inputs = np.random.default_rng(0).standard_normal(case.shape).astype(np.float32)
    layout = channel_layout(case.model, inputs, head=())
    child, parent = zoo.random_params(layout, 1), zoo.random_params(layout, 2)
    gates = zoo.share_open(layout, 3)
    placed = placements(layout, gates, zoo.room(layout, gates))
    packed = pack(child, gates, placed)

    def loss(params, inputs):
        outputs = case.model.apply({"params": params}, inputs).astype(jnp.float32)
        return jnp.mean(jnp.sin(outputs) * jnp.arange(outputs.size).reshape(outputs.shape) / outputs.size)

    def dense(child, inputs):
        return loss(mix(parent, child, gates), inputs)

    def compact(packed, inputs):
        effective = unpack(packed, parent, gates, placed)
        with active_gradients(effective, packed, parent, gates, placed):
            return loss(effective, inputs)

    both = [jax.value_and_grad(form, argnums=(0, 1)) for form in (dense, compact)]
    programs = [
        jax.jit(form).lower(tree, inputs).compile() for form, tree in zip(both, (child, packed), strict=True)
    ]
    (value, (of_child, of_inputs)), (ours, (of_packed, also_of_inputs)) = (
        program(tree, inputs) for program, tree in zip(programs, (child, packed), strict=True)
    )
    assert float(value) == pytest.approx(float(ours), rel=1e-5)
    largest = np.abs(of_inputs).max()  # attention's gradients cancel: rounding is of what cancels
    np.testing.assert_allclose(also_of_inputs, of_inputs, rtol=0, atol=1e-5 * largest)
    wanted = flatten(pack(jax.device_get(of_child), gates, placed))
    overall = max(np.abs(leaf).max() for leaf in wanted.values())
    for path, gradient in flatten(of_packed).items():
        scale = max(np.abs(wanted[path]).max(), 0.05 * overall)  # the gradient of a key's bias is zero
        np.testing.assert_allclose(gradient, wanted[path], rtol=0, atol=case.tolerance * scale, err_msg=path)
        assert not np.any(gradient[:, -1]), path  # the column of padding
        assert gradient.dtype == wanted[path].dtype
    flops = [program.cost_analysis()["flops"] for program in programs]
    if case.narrow:
        assert flops[1] < 0.95 * flops[0]


def test_only_a_cpu_turns_convolutions_round():
    model, inputs = nn.Conv(32, (3, 3)), np.zeros(image, np.float32)
    layout = channel_layout(model, inputs, head=())
    child, gates = zoo.random_params(layout, 1), zoo.share_open(layout, 3)
    placed = placements(layout, gates, zoo.room(layout, gates))

    def compact(packed):
        effective = unpack(packed, child, gates, placed)
        with active_gradients(effective, packed, child, gates, placed):
            return jnp.sum(model.apply({"params": effective}, inputs))

    traced = jax.jit(jax.grad(compact)).trace(pack(child, gates, placed))
    reversed_on = lambda platform: (
        "stablehlo.reverse" in traced.lower(lowering_platforms=(platform,)).as_text()
    )
    assert [reversed_on(platform) for platform in ("cpu", "cuda", "tpu")] == [True, False, False]


def test_a_gate_over_the_inputs_of_a_layer_is_not_taken_for_its_outputs():
    model, inputs = (
        nn.Dense(8, use_bias=False),
        np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32),
    )
    layout = channel_layout(model, inputs, head=(), rules={"kernel": (-2,)})
    child, gates = zoo.random_params(layout, 1), zoo.share_open(layout, 3)
    placed = placements(layout, gates, zoo.room(layout, gates))

    def compact(packed):
        effective = unpack(packed, child, gates, placed)
        with active_gradients(effective, packed, child, gates, placed):
            return jnp.sum(jnp.sin(model.apply({"params": effective}, inputs)))

    plain = jax.grad(lambda params: jnp.sum(jnp.sin(model.apply({"params": params}, inputs))))(child)
    chex.assert_trees_all_close(
        jax.grad(compact)(pack(child, gates, placed)),
        pack(jax.device_get(plain), gates, placed),
        rtol=1e-5,
        atol=1e-6,
    )


def compiled(model, size: int, share: float | None, form: str = "compact", shut=()) -> Compiled:
    """Returns a fine-tuning step, or a hard step with that share of channels open, compiled."""
    example = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    layout = channel_layout(model, example)
    method = {"compact": methods.Cwps(), "dense": DenseCwps()}[form] if share else methods.Finetune()
    config = TrainConfig(method=method, weight_decay=1e-4)
    network = Network(model, layout, example)
    stage = method.stages(network, config)[-1]
    shapes = jax.eval_shape(model.init, jax.random.key(0), example)
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    params = variables.pop("params")
    gates = zoo.share_open(layout, 0, share or 1.0)
    gates = unflatten({p: g & (not p.startswith(tuple(shut) or "-")) for p, g in flatten(gates).items()})
    scores = jax.tree.map(lambda gate: np.where(gate, 1, -1).astype(np.float32), gates)
    start, before = {"params": params, **variables}, {"parent": select(params, layout.layer_paths)}
    own = {"params": params, "masks": scores}
    begun = stage.begin(Moment(network, NO_POOL, config, start, own, before, {}))
    fresh = {"params": stage.groups["params"].optimizer.init(begun.own["params"])}
    state = begun_state(start_state(variables, config), stage, begun, fresh)
    frozen = stage.on_device(begun.frozen)
    plan = make_plan(config, stage, first_epoch=0, epochs=30, steps_per_epoch=100)
    step = Compiled(jax.jit(make_step(stage, model, cross_entropy, accuracy)))
    batch = {"image": np.zeros((8, size, size, 3), np.float32), "label": np.zeros(8, np.int32)}
    step.prepare(*jax.device_put((state, frozen, plan, batch)))
    return step


def test_a_hard_step_computes_weight_gradients_of_open_channels_alone():
    model = ResNet(10, stage_sizes=(1, 1), widths=(64, 128), small_images=True)
    tuned, hard = compiled(model, 16, None), compiled(model, 16, 0.3)
    assert hard.flops / tuned.flops <= 0.80
    assert compiled(model, 16, 0.3, "dense").flops / tuned.flops > 0.99


def test_a_hard_step_does_not_keep_its_kernels_for_the_backward_pass():
    model = ResNet(10, stage_sizes=(2, 2), widths=(64, 256), small_images=True)
    kernels = 4 * channel_layout(model, jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)).backbone_parameters
    tuned, hard = compiled(model, 16, None), compiled(model, 16, 0.3)
    # 0.7 of child and momentum are saved and a parent is added; kept kernels would make it the larger one.
    assert hard.peak_bytes < tuned.peak_bytes - kernels


def test_without_norms_layers_below_the_first_open_one_have_no_backward_pass():
    model = SqueezeNet(10, widths=((16, 16),))
    some, upper = compiled(model, 33, 0.3), compiled(model, 33, 0.3, shut=("stem_conv", "fire2"))
    assert upper.flops < 0.8 * some.flops
