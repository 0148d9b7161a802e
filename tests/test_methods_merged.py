"""A merged change of a kernel is the layer that it stands for, computed beside the frozen one."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from methods_shared import images_of, noisy, setting_of, tiny, vit

import cwps_jax as cwps
from cwps_jax import methods, models
from cwps_jax.core.trees import flatten, unflatten, unite
from cwps_jax.methods.method import Moment
from cwps_jax.methods.network import Network
from cwps_jax.modules import channel_layout

CLOSE: dict[str, Any] = {"rtol": 2e-5, "atol": 2e-5}
LOW_RANK = [name for name in zoo.KINDS if name not in ("grouped", "depthwise")]


def network_of(model: nn.Module, shape: tuple[int, ...]) -> Network:
    example = jax.ShapeDtypeStruct(shape, np.float32)
    return Network(model, channel_layout(model, example), example)


def random(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def begun_with(method: Any, network: Network, params: Any, scale: float = 0.5) -> dict[str, Any]:
    """Returns the collections that a method adds, with noise on every leaf."""
    moment = Moment(network, None, cwps.TrainConfig(), {"params": params}, {}, {}, {})
    return noisy(method.added(moment), scale)


def merged(method: Any, network: Network, params: Any, own: Any) -> dict[str, Any]:
    """Returns the plain model's parameters with the leaves that a method changes."""
    flat = jax.device_put(flatten(params))
    return jax.device_get(unite(params, unflatten(method.changed(network.layout, own, flat))))


def apply(model: nn.Module, params: Any, x: np.ndarray, change: Any = None) -> np.ndarray:
    """Returns a model's outputs; `change` is given each module's path, call and input: see `beside`."""

    def intercept(next_function, args, kwargs, context):
        path = "/".join(context.module.path)
        if context.method_name != "__call__" or change is None:
            return next_function(*args, **kwargs)
        return change(path, context.module, lambda x: next_function(x, *args[1:], **kwargs), args[0])

    variables = params if "params" in params else {"params": params}
    with nn.intercept_methods(intercept):
        return np.asarray(jax.jit(model.apply)(variables, x))


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((3, 3), {"padding": "SAME"}),
        ((3, 3), {"padding": 1, "strides": 2}),
        ((5, 3), {"padding": "VALID", "strides": (2, 1)}),
        ((3, 3), {"padding": 2, "kernel_dilation": 2}),
        ((1, 1), {"strides": 2}),
    ],
)
@pytest.mark.parametrize("stabilised", [False, True])
def test_lora_of_a_convolution_is_a_convolution_to_rank_channels_and_a_1x1_one_behind(
    size, options, stabilised
):
    conv, x = nn.Conv(5, size, name="conv", **options), random((2, 9, 8, 4))
    network, params = network_of(conv, x.shape), zoo.random_params(network_of(conv, x.shape).layout, 1)
    method = methods.Lora(rank=3, alpha=6.0, rank_stabilised=stabilised)
    own = begun_with(method, network, params)
    first = nn.Conv(3, size, use_bias=False, **options)
    second = nn.Conv(5, (1, 1), use_bias=False)
    low = apply(first, {"kernel": own["lora_a"]["kernel"].reshape(*size, 4, 3)}, x)
    change = apply(second, {"kernel": own["lora_b"]["kernel"].reshape(1, 1, 3, 5)}, low)
    expected = apply(conv, params, x) + (6 / np.sqrt(3) if stabilised else 2) * change
    np.testing.assert_allclose(apply(conv, merged(method, network, params, own), x), expected, **CLOSE)


@pytest.mark.parametrize("name", ["dense", "attention", "attention_of_one_head", "rematerialised"])
def test_lora_of_dense_and_attention_kernels_is_two_products_beside_the_frozen_layer(name):
    kind, layout = zoo.KINDS[name], zoo.layout(name)
    network, params = network_of(kind.model, kind.shape), zoo.random_params(layout, 1)
    method = methods.Lora(rank=2, alpha=3.0)
    own = begun_with(method, network, params)
    first, second = flatten(own["lora_a"]), flatten(own["lora_b"])
    seen = []

    def beside(path, module, call, x):
        y, kernel = call(x), f"{path}/kernel".removeprefix("/")
        if kernel not in first:
            return y
        seen.append(kernel)
        rows = x.reshape(-1, first[kernel].shape[0])
        return y + 1.5 * (rows @ first[kernel] @ second[kernel]).reshape(y.shape)

    x = random(kind.shape)
    expected = apply(kind.model, params, x, beside)
    assert set(seen) == set(first)
    np.testing.assert_allclose(
        apply(kind.model, merged(method, network, params, own), x), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", LOW_RANK)
def test_lora_changes_each_copy_of_each_kernel_by_a_product_of_its_own(name):
    kind, layout = zoo.KINDS[name], zoo.layout(name)
    network, params = network_of(kind.model, kind.shape), zoo.random_params(layout, 1)
    method = methods.Lora(rank=2, alpha=3.0)
    own = begun_with(method, network, params)
    assert not network.grouped
    found, before = (flatten(tree) for tree in (merged(method, network, params, own), params))
    first, second = flatten(own["lora_a"]), flatten(own["lora_b"])
    assert first.keys() == second.keys() == {layer.path for layer in layout.layers}
    for layer in layout.layers:
        fan_in = before[layer.path].size // layer.channels
        a = first[layer.path].reshape(-1, fan_in, 2)
        b = second[layer.path].reshape(len(a), 2, -1)
        if kind.copies or name.startswith("mapped"):
            assert len(a) == before[layer.path].shape[0]
        products = [1.5 * (one @ other).T for one, other in zip(a, b, strict=True)]
        change = zoo.kernel_channels(layer, layer.path, found[layer.path] - before[layer.path])
        np.testing.assert_allclose(change, np.concatenate(products), **CLOSE)
    for path in before.keys() - first.keys():
        np.testing.assert_array_equal(found[path], before[path])


@pytest.mark.parametrize(("size", "padding"), [(3, 1), (5, 2)])
@pytest.mark.parametrize("stride", [1, 2])
def test_an_adapter_is_a_parallel_1x1_convolution_with_the_stride_of_the_layer(size, padding, stride):
    conv, x = nn.Conv(5, (size, size), strides=stride, padding=padding), random((2, 8, 7, 3))
    network, params = network_of(conv, x.shape), zoo.random_params(network_of(conv, x.shape).layout, 1)
    method = methods.Adapter()
    own = begun_with(method, network, params)
    beside = nn.Conv(5, (1, 1), strides=stride, use_bias=False)
    added = apply(beside, {"kernel": own["adapters"]["kernel"][None, None]}, x)
    found = apply(conv, merged(method, network, params, own), x)
    np.testing.assert_allclose(found, apply(conv, params, x) + added, **CLOSE)


def test_a_residual_network_with_adapters_is_the_one_with_1x1_convolutions_beside_its_3x3_ones():
    model, x = models.create("resnet8", 3), random((2, 16, 16, 1))
    network = network_of(model, x.shape)
    variables = jax.device_get(jax.jit(model.init)(jax.random.key(0), x))
    method = methods.Adapter()
    own = begun_with(method, network, variables["params"], 0.1)
    adapters, strides = flatten(own["adapters"]), []
    kernels = {path: leaf.shape for path, leaf in flatten(variables["params"]).items()}
    assert adapters.keys() == {path for path, shape in kernels.items() if shape[:2] == (3, 3)}

    def beside(path, module, call, x):
        kernel = adapters.get(f"{path}/kernel")
        if kernel is None:
            return call(x)
        stride = module.strides if isinstance(module.strides, int) else 1
        strides.append(stride)
        return call(x) + jnp.einsum("bhwi,io->bhwo", x[:, ::stride, ::stride], kernel)

    expected = apply(model, variables, x, beside)
    assert set(strides) == {1, 2}
    found = {**variables, "params": merged(method, network, variables["params"], own)}
    np.testing.assert_allclose(apply(model, found, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("where", [tiny, vit])
def test_ssf_is_a_scale_and_a_shift_after_every_operation(where):
    where = where()
    network, params = where.trainer.network, where.variables["params"]
    method = methods.Ssf()
    own = begun_with(method, network, params, 0.3)
    scales, shifts = flatten(own["scales"]), flatten(own["shifts"])
    seen = []

    def behind(path, module, call, x):
        y = call(x)
        for name in (f"{path}/kernel", f"{path}/scale"):
            if name in scales:
                seen.append(path)
                y = scales[name] * y + shifts.get(f"{path}/bias", 0)
        return y

    x = images_of(4, 9, where.size)
    expected = apply(where.model, where.variables, x, behind)
    assert sorted(seen) == sorted(path.rpartition("/")[0] for path in scales)
    modules = {path.rpartition("/")[0] for path in flatten(params) if path.endswith(("kernel", "scale"))}
    assert set(seen) == modules - {"head"}
    # A convolution without a bias, whose shift the norm behind it would take out again, gets none.
    assert {path for path in flatten(params) if path.endswith("bias")} - {"head/bias"} == shifts.keys()
    found = {**where.variables, "params": merged(method, network, params, own)}
    np.testing.assert_allclose(apply(where.model, found, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("where", "least"), [(tiny, 1), (vit, 2)])
def test_ba2_switches_off_input_channels(where, least):
    where = where()
    network, params = where.trainer.network, where.variables["params"]
    method = methods.Ba2()
    own = begun_with(method, network, params, 0.1)
    switches = {path: (np.ravel(score) >= 5e-3) for path, score in flatten(own["switches"]).items()}
    seen = []

    def switched(path, module, call, x):
        if f"{path}/kernel" not in switches:
            return call(x)
        seen.append(path)
        return call(x * switches[f"{path}/kernel"])

    x = images_of(4, 9, where.size)
    expected = apply(where.model, where.variables, x, switched)
    assert len(seen) == len(switches) >= least
    assert 0.2 < np.mean(np.concatenate(list(switches.values()))) < 0.8
    found = {**where.variables, "params": merged(method, network, params, own)}
    np.testing.assert_allclose(apply(where.model, found, x), expected, **CLOSE)


@pytest.mark.parametrize("ternary", [False, True])
def test_the_gradient_of_a_score_is_the_pretrained_weight_times_that_of_the_masked_weight(ternary):
    where = setting_of("piggyback")
    method, params = methods.Piggyback(ternary=ternary), where.variables["params"]
    scores = begun_with(method, where.trainer.network, params, 0.02)["masks"]
    flat = jax.device_put(flatten(params))
    x = images_of(4, 9)

    def changed(scores):
        return method.changed(where.layout, {"masks": scores}, flat)

    def loss(weights):
        variables = {**where.variables, "params": unite(params, unflatten(weights))}
        return jnp.sum(jnp.sin(where.model.apply(variables, x)))

    by_score = flatten(jax.jit(jax.grad(lambda scores: loss(changed(scores))))(scores))
    weights = jax.device_get(changed(scores))
    by_weight = jax.jit(jax.grad(loss))(weights)
    signs = {path: np.sign(weights[path] / flat[path]) for path in weights}
    assert set(np.unique(np.concatenate([sign.ravel() for sign in signs.values()]))) == (
        {-1, 0, 1} if ternary else {0, 1}
    )
    for path, score in flatten(scores).items():
        below = np.where(score < 0, -1 if ternary else 0, 0)
        np.testing.assert_array_equal(signs[path], np.where(score >= 5e-3, 1, below))
        assert np.abs(by_weight[path]).max() > 0
        np.testing.assert_allclose(by_score[path], flat[path] * by_weight[path], **CLOSE)


def test_rank_stabilised_changes_are_larger_by_the_root_of_the_rank():
    kind = zoo.KINDS["dense"]
    network, params = network_of(kind.model, kind.shape), zoo.random_params(zoo.layout("dense"), 1)
    plain = methods.Lora(rank=9)
    own = begun_with(plain, network, params)
    change = functools.partial(_change_of, network=network, params=params, own=own)
    np.testing.assert_allclose(change(methods.Lora(rank=9, rank_stabilised=True)), 3 * change(plain), **CLOSE)


def _change_of(method, network, params, own):
    return merged(method, network, params, own)["kernel"] - params["kernel"]
