"""What holds for every family of backbones, on small ones of it; parity with other libraries is elsewhere."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cwps_jax import models
from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.errors import CwpsError
from cwps_jax.models.backbone import Backbone
from cwps_jax.models.efficientnet import Stage
from cwps_jax.models.pretrained import load_backbone, save_backbone
from cwps_jax.models.squeezenet import max_pool
from cwps_jax.models.stochastic_depth import drop_branch, drop_rate
from cwps_jax.modules import channel_layout

CLASSES = 5


@dataclasses.dataclass(frozen=True)
class Case:
    """A small model of a family.

    Attributes:
        backbone: name of one of the family.
        settings: what makes it small.
        side: of its images.
        last_branch: modules that end the last block's residual branches, where there is stochastic depth; the
            first block and the last must be the only ones with a shortcut.
        head_alone: its logits from the head's bias when the head's inputs are all dropped, where its dropout
            is nowhere else.
    """

    backbone: str
    settings: Mapping[str, Any]
    side: int
    last_branch: tuple[str, ...] = ()
    head_alone: Any = None

    @property
    def small(self) -> Backbone:
        known = models.BACKBONES[self.backbone]
        return dataclasses.replace(
            known,
            settings={**known.settings, **self.settings},
            image_size=self.side,
            num_classes=CLASSES,
        )


CASES = {
    "resnet": Case("resnet20_cifar", {"stage_sizes": (1, 1), "widths": (4, 6)}, 8, ("stage2_block0/norm2",)),
    "bottleneck": Case("resnet50", {"stage_sizes": (2,), "widths": (4,)}, 16, ("stage1_block1/norm3",)),
    "densenet": Case("densenet121", {"block_sizes": (2, 1), "growth": 4, "stem_width": 6}, 16),
    "efficientnet": Case(
        "efficientnet_b0",
        {"stages": (Stage(1, 3, 1, 8, 1), Stage(2, 5, 1, 8, 1)), "stem_width": 8, "last_width": 8},
        16,
        ("stage1_block0/project_norm",),
        lambda bias: bias,
    ),
    "squeezenet": Case(
        "squeezenet1_1", {"widths": ((2,), (3,)), "stem_width": 6}, 16, head_alone=jax.nn.relu
    ),
    "vit": Case(
        "vit_ti16",
        {"width": 8, "depth": 2, "heads": 2, "patch_size": 4},
        8,
        ("block1/attention/out", "block1/mlp/dense2"),
    ),
    "mixer": Case(
        "mixer_s16",
        {"width": 8, "depth": 2, "patch_size": 4},
        8,
        ("block1/token_mixing/dense2", "block1/channel_mixing/dense2"),
    ),
}
every_family = pytest.mark.parametrize("family", CASES)
of_those = lambda has: pytest.mark.parametrize("family", [name for name, case in CASES.items() if has(case)])


def model_of(family: str, **options: Any) -> nn.Module:
    return CASES[family].small.create(CLASSES, **options)


def has_option(family: str, option: str) -> bool:
    return option in {field.name for field in dataclasses.fields(CASES[family].small.module)}


@functools.cache
def images_of(family: str) -> np.ndarray:
    side = CASES[family].side
    return np.random.default_rng(0).standard_normal((4, side, side, 3)).astype(np.float32)


def shapes_of(model: nn.Module, side: int) -> dict[str, jax.ShapeDtypeStruct]:
    example = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return flatten(jax.eval_shape(model.init, jax.random.key(0), example))


@functools.cache
def variables_of(family: str, seed: int = 0) -> dict:
    """Returns random variables that leave no leaf, and no norm, without effect."""
    rng = np.random.default_rng(seed)

    def leaf(path: str, shape: tuple[int, ...]) -> np.ndarray:
        if path.endswith("/var"):
            return rng.uniform(0.5, 1.5, shape)
        if path.endswith("/scale"):
            return rng.uniform(0.5, 1.5, shape)
        return rng.standard_normal(shape) / np.sqrt(max(np.prod(shape[:-1]), 4))

    shapes = shapes_of(model_of(family), CASES[family].side)
    return unflatten({path: leaf(path, one.shape).astype(np.float32) for path, one in shapes.items()})


@functools.cache
def training(family: str, **options: Any):
    """Returns the jitted (variables, images) -> (logits, gradients, new statistics) in training."""
    model = model_of(family, **options)

    def step(variables, images):
        def loss(params):
            logits, changed = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(2)},
            )
            return jnp.sum(jnp.sin(logits)), (logits, changed)

        gradients, (logits, changed) = jax.grad(loss, has_aux=True)(variables["params"])
        return logits, gradients, changed

    return jax.jit(step)


def trained_logits(family: str, variables: dict, **options: Any) -> np.ndarray:
    model, keys = model_of(family, **options), {"dropout": jax.random.key(2)}
    apply = functools.partial(model.apply, train=True, mutable=["batch_stats"], rngs=keys)
    return np.asarray(jax.jit(apply)(variables, images_of(family))[0])


@pytest.mark.parametrize("name", models.BACKBONES)
def test_the_number_of_parameters_is_the_published_one(name):
    backbone = models.BACKBONES[name]
    shapes = shapes_of(backbone.create(backbone.num_classes), backbone.image_size)
    counts = [np.prod(leaf.shape) for path, leaf in shapes.items() if path.startswith("params/")]
    assert sum(counts) == backbone.parameters


@pytest.mark.parametrize("name", models.BACKBONES)
def test_an_unknown_option_is_refused(name):
    with pytest.raises(CwpsError, match="has no option 'colour'; it has .*dtype"):
        models.create(name, 10, colour="red")


@every_family
def test_every_leaf_has_a_place_and_every_kernel_channels(family):
    model, side = model_of(family), CASES[family].side
    layout = channel_layout(model, jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32))
    params = [path for path in flatten(variables_of(family)["params"])]
    placed = (*layout.layer_paths, *layout.private_paths, *layout.head_paths)
    assert sorted(placed) == sorted(params)
    assert {path.split("/")[0] for path in layout.head_paths} == {"head"}
    kernels = {path for path in params if path.endswith("/kernel")}
    assert kernels - {"head/kernel"} == {layer.path for layer in layout.layers}


@pytest.mark.parametrize(
    ("family", "keys"), [(name, table.name) for name, case in CASES.items() for table in case.small.tables]
)
def test_a_file_in_each_set_of_names_gives_the_same_variables(family, keys, tmp_path, monkeypatch):
    backbone, variables = CASES[family].small, variables_of(family)
    monkeypatch.setitem(models.BACKBONES, "small", backbone)
    table = next(table for table in backbone.tables if table.name == keys)
    path = tmp_path / f"weights{table.suffix}"
    if table.suffix == ".safetensors":
        save_backbone(path, "small", variables, keys=keys)
    else:
        leaves = flatten(variables)
        arrays = {key: one.to_array(leaves) for key, one in table.conversions(leaves).items()}
        np.savez(path, **arrays)
    _, loaded = load_backbone("small", path)
    chex.assert_trees_all_equal(loaded, variables)


@every_family
def test_rematerialised_blocks_compute_the_same(family):
    variables, images = variables_of(family), images_of(family)
    plain, remat = training(family), training(family, remat=True)
    assert "remat" not in str(plain.trace(variables, images).jaxpr)
    assert "remat" in str(remat.trace(variables, images).jaxpr)
    outputs = plain(variables, images)
    chex.assert_trees_all_close(remat(variables, images), outputs, rtol=1e-4, atol=1e-5)
    kernels = {path: leaf for path, leaf in flatten(outputs[1]).items() if path.endswith("kernel")}
    assert min(np.abs(leaf).max() for leaf in kernels.values()) > 1e-3
    assert shapes_of(model_of(family, remat=True), CASES[family].side).keys() == flatten(variables).keys()


@every_family
def test_bfloat16_is_for_computing_alone(family):
    model, images = model_of(family, dtype=jnp.bfloat16), images_of(family)
    assert {leaf.dtype for leaf in shapes_of(model, CASES[family].side).values()} == {np.dtype("float32")}
    variables = variables_of(family)
    outputs = jax.eval_shape(training(family, dtype=jnp.bfloat16), variables, images)
    assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {np.dtype("float32")}
    exact, _, _ = training(family)(variables, images)
    rounded = trained_logits(family, variables, dtype=jnp.bfloat16)
    error = np.abs(rounded - exact).max() / np.abs(exact).max()
    assert 1e-5 < error < 0.1
    program = str(jax.make_jaxpr(model.apply)(variables, images))
    products = re.findall(r":(\w+)\[[\d,]*\] = (?:conv_general_dilated|dot_general)\[", program)
    assert products.count("bf16") >= len(products) - 1 > 1  # but for the head


@pytest.mark.parametrize("family", [name for name in CASES if has_option(name, "norm_momentum")])
def test_training_moves_statistics_by_the_momentum_and_does_not_read_them(family):
    step = training(family)
    images, variables, other = images_of(family), variables_of(family), variables_of(family, seed=1)
    logits, _, changed = step(variables, images)
    same_logits, _, other_changed = step({**variables, "batch_stats": other["batch_stats"]}, images)
    np.testing.assert_array_equal(logits, same_logits)
    old, new = flatten(variables["batch_stats"]), flatten(changed["batch_stats"])
    other_old, other_new = flatten(other["batch_stats"]), flatten(other_changed["batch_stats"])
    for path in old:
        assert np.abs(new[path] - old[path]).max() > 1e-4, path
        expected = 0.9 * (old[path] - other_old[path])
        np.testing.assert_allclose(new[path] - other_new[path], expected, atol=1e-5, err_msg=path)


@of_those(lambda case: case.last_branch)
def test_stochastic_depth_drops_the_last_branch_whole(family):
    variables = variables_of(family)
    silent = {
        path: np.zeros_like(leaf) if path.rpartition("/")[0] in CASES[family].last_branch else leaf
        for path, leaf in flatten(variables["params"]).items()
    }
    expected, _, _ = training(family)({**variables, "params": unflatten(silent)}, images_of(family))
    dropped = trained_logits(family, variables, stochastic_depth=1.0)
    np.testing.assert_allclose(dropped, expected, rtol=1e-5, atol=1e-5)
    whole, _, _ = training(family)(variables, images_of(family))
    assert np.abs(dropped - whole).max() > 1e-2


@of_those(lambda case: case.head_alone)
def test_dropout_is_in_front_of_the_head(family):
    variables = variables_of(family)
    expected = CASES[family].head_alone(variables["params"]["head"]["bias"])
    logits = trained_logits(family, variables, dropout=1.0)
    np.testing.assert_allclose(logits, np.broadcast_to(expected, logits.shape), atol=1e-6)


@pytest.mark.parametrize("option", ["dropout", "stochastic_depth"])
@every_family
def test_nothing_is_dropped_in_evaluation(family, option):
    if not has_option(family, option):
        return
    variables, images = variables_of(family), images_of(family)
    plain, dropping = (model_of(family, **{option: rate}) for rate in (0.0, 0.9))
    assert str(jax.make_jaxpr(dropping.apply)(variables, images)) == str(
        jax.make_jaxpr(plain.apply)(variables, images)
    )


class Branch(nn.Module):
    rate: float

    @nn.compact
    def __call__(self, y, train):
        return drop_branch(y, self.rate, train)


def test_dropped_branches_keep_their_expectation():
    y = np.random.default_rng(0).standard_normal((4000, 2, 3)).astype(np.float32)
    dropped = np.asarray(Branch(0.25).apply({}, y, True, rngs={"dropout": jax.random.key(0)}))
    kept = np.abs(dropped).sum(axis=(1, 2)) > 0
    np.testing.assert_allclose(dropped[kept], y[kept] / 0.75, rtol=1e-6)
    assert abs(kept.mean() - 0.75) < 4 * np.sqrt(0.25 * 0.75 / 4000)
    np.testing.assert_array_equal(Branch(0.25).apply({}, y, False), y)


def test_rates_grow_linearly_to_the_last_block():
    np.testing.assert_allclose([drop_rate(0.2, block, 5) for block in range(5)], [0, 0.05, 0.1, 0.15, 0.2])


@pytest.mark.parametrize("sides", [(2, 3), (3, 4), (4, 5), (5, 6), (7, 8)])
def test_pooling_counts_the_window_that_hangs_over(sides):
    x = -1 - np.random.default_rng(0).random((1, *sides, 2)).astype(np.float32)  # no zero of the padding's
    rows, columns = (range(0, 2 * -(-(side - 3) // 2) + 1, 2) for side in sides)
    expected = [[x[0, i : i + 3, j : j + 3].max(axis=(0, 1)) for j in columns] for i in rows]
    np.testing.assert_array_equal(max_pool(x)[0], np.stack(expected))


@pytest.mark.parametrize(
    ("name", "settings", "side"),
    [("densenet121", {"block_sizes": (1, 1, 1, 1)}, 29), ("squeezenet1_1", {}, 17)],
)
def test_images_of_which_nothing_would_be_left_are_refused(name, settings, side):
    model = models.create(name, CLASSES).clone(**settings)
    assert shapes_of(model, side)
    for too_small in (1, side - 1):
        with pytest.raises(CwpsError, match=f"images of {too_small} x {too_small} px are too small"):
            shapes_of(model, too_small)
