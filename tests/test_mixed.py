"""The mixed batch: pictures of many tasks in one call, against each task's own network."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from test_families import CASES

from cwps_jax.bank.mixed import PrivateRows, mixed_apply
from cwps_jax.core.mixing import mix
from cwps_jax.core.packing import pack
from cwps_jax.core.trees import flatten, select, unflatten
from cwps_jax.errors import CwpsError
from cwps_jax.modules import channel_layout

TASKS = 3
PICTURE_TASKS = (0, 2, 0, 1)  # of each picture; task 1 has no rows at all


def random_tree(shapes, seed):
    """Returns random leaves of these shapes; positive, as variances are, and near one."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: (1 + 0.3 * rng.random(leaf.shape)).astype(np.float32), shapes)


def child_of(layout, params, seed):
    """Returns parameters with noise of the size of each layer's own weights."""
    rng = np.random.default_rng(seed)
    noisy = lambda leaf: (leaf + 0.1 * rng.standard_normal(leaf.shape)).astype(np.float32)
    return jax.tree.map(noisy, params)


class Bank:
    """Three tasks of a model, by its layout: their effective variables, and what they do not share.

    Attributes:
        shared: the pre-trained variables.
        effective: of each task.
        packed: {path of a leaf: rows} of each task.
        gates: of each task.
    """

    def __init__(self, model, example, share=0.3, **layout_settings):
        self.model, self.layout = model, channel_layout(model, example, **layout_settings)
        key = jax.random.key(0)
        variables = jax.jit(model.init)(key, jnp.zeros(example.shape, example.dtype))
        variables = jax.tree.map(np.asarray, dict(variables))
        params = variables.pop("params")
        self.shared = {"params": params, **random_tree(variables, 1)}
        self.effective, self.packed, self.gates = [], [], []
        for task in range(TASKS):
            gates = zoo.random_gates(self.layout, task, 0.0 if task == 1 else share)
            child = child_of(self.layout, params, 10 + task)
            others = random_tree(variables, 20 + task)
            self.effective.append({"params": jax.tree.map(np.asarray, mix(params, child, gates)), **others})
            self.packed.append(pack(self.layout, child, gates))
            self.gates.append(flatten(gates))

    def private(self, tasks, padding=1):
        """Returns the `PrivateRows` of pictures of these tasks."""
        channels, rows = {}, {}
        for layer in self.layout.layers:
            opened = [np.flatnonzero(gates[layer.path]) for gates in self.gates]
            width = padding + max(map(len, opened))
            channels[layer.path] = np.full((len(tasks), width), layer.channels, np.int32)
            for leaf in layer.leaves:
                fan_in = self.packed[0][leaf].shape[1]
                # Not zeros: what padding holds must not matter.
                rows[leaf] = np.full((len(tasks), width, fan_in), 7.0, np.float32)
            for picture, task in enumerate(tasks):
                count = len(opened[task])
                channels[layer.path][picture, :count] = opened[task]
                for leaf in layer.leaves:
                    rows[leaf][picture, :count] = self.packed[task][leaf]
        stack = lambda trees: jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
        own = (*self.layout.private_paths, *self.layout.head_paths)
        params = stack([select(self.effective[task]["params"], own) for task in tasks])
        other = stack([{k: v for k, v in self.effective[task].items() if k != "params"} for task in tasks])
        return PrivateRows(channels, rows, params, other)

    def mixed(self, private, pictures):
        apply = functools.partial(mixed_apply, self.model, self.layout)
        return np.asarray(jax.jit(apply)(self.shared, private, pictures))

    def one_by_one(self, tasks, pictures):
        apply = jax.jit(self.model.apply)
        answers = [
            apply(self.effective[task], picture[None])[0]
            for task, picture in zip(tasks, pictures, strict=True)
        ]
        return np.stack(answers)


def pictures_of(shape, seed=5):
    return np.random.default_rng(seed).standard_normal((len(PICTURE_TASKS), *shape)).astype(np.float32)


def assert_close(answers, expected):
    assert answers.shape == expected.shape
    np.testing.assert_allclose(answers, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def assert_equal_to_each(bank, shape):
    pictures = pictures_of(shape)
    expected = bank.one_by_one(PICTURE_TASKS, pictures)
    assert_close(bank.mixed(bank.private(PICTURE_TASKS), pictures), expected)
    # The tasks' answers differ by far more than that, or the test would not see rows that went astray.
    plain = np.asarray(jax.jit(bank.model.apply)(bank.shared, pictures))
    assert np.abs(plain - expected).max() > 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("name", CASES)
def test_every_family_answers_as_each_tasks_own_network(name):
    case = CASES[name]
    model = case.small.create(5)
    bank = Bank(model, jax.ShapeDtypeStruct((1, case.side, case.side, 3), np.float32))
    assert_equal_to_each(bank, (case.side, case.side, 3))


# The first axis of their inputs is not one of pictures.
NO_BATCH = ("dense_general_of_each_item", "mapped", "mapped_dense_alone")
LAYERS = {
    "strided": (nn.Conv(6, (3, 3), strides=2), (7, 7, 3)),
    "dilated": (nn.Conv(6, (3, 2), kernel_dilation=(2, 1), padding=((2, 1), (0, 3))), (6, 5, 3)),
    "circular": (nn.Conv(6, (3, 3), padding="CIRCULAR"), (5, 5, 3)),
    "one_axis": (nn.Conv(6, (4,), strides=3, padding="VALID"), (11, 3)),
    "one_pixel_kernel": (nn.Conv(6, (1, 1), strides=2), (5, 4, 3)),
    "input_dilated": (nn.Conv(6, (3, 3), padding=((2, 2), (1, 3)), input_dilation=2), (4, 4, 3)),
    "depthwise_twice": (nn.Conv(6, (3, 3), feature_group_count=3), (4, 4, 3)),
    "half_precision": (nn.Conv(6, (3, 3), dtype=jnp.bfloat16), (4, 4, 3)),
    **{name: (kind.model, kind.shape[1:]) for name, kind in zoo.KINDS.items() if name not in NO_BATCH},
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_kind_of_layer_answers_as_each_tasks_own(name):
    model, shape = LAYERS[name]
    bank = Bank(model, jax.ShapeDtypeStruct((1, *shape), np.float32), share=0.5)
    if name == "half_precision":  # of the products alone: sums are rounded in another order
        pictures = pictures_of(shape)
        expected = bank.one_by_one(PICTURE_TASKS, pictures).astype(np.float32)
        answers = bank.mixed(bank.private(PICTURE_TASKS), pictures).astype(np.float32)
        np.testing.assert_allclose(answers, expected, rtol=0, atol=2e-2 * np.abs(expected).max())
    else:
        assert_equal_to_each(bank, shape)


class OfItsOwn(nn.Module):
    """A user's layer: nothing here knows how it multiplies."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], 5))
        return jnp.tanh(x) @ jnp.where(kernel > 0, kernel, 0.1 * kernel)


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        shared_twice = nn.Dense(4, name="twice")
        return nn.Dense(3, name="head")(OfItsOwn(name="own")(shared_twice(shared_twice(x))))


@pytest.fixture
def of_a_user():
    example = jax.ShapeDtypeStruct((1, 4), np.float32)
    return Bank(Model(), example, share=0.5, rules={"own/kernel": (-1,)})


def test_a_users_own_layer_and_a_layer_called_twice(of_a_user):
    assert_equal_to_each(of_a_user, (4,))


def test_what_tasks_share_may_be_left_out(of_a_user):
    nothing = PrivateRows({}, {}, {}, {})
    pictures = pictures_of((4,))
    expected = np.asarray(of_a_user.model.apply(of_a_user.shared, pictures))
    assert_close(of_a_user.mixed(nothing, pictures), expected)


@pytest.mark.parametrize(
    ("field", "path", "change", "told"),
    [
        ("channels", "twice/kernel", lambda leaf: None, "rows/twice/bias: not in the shared variables, or"),
        ("rows", "twice/kernel", lambda leaf: None, "rows/twice/kernel: channels without their rows"),
        ("rows", "twice/kernel", lambda leaf: leaf[:, :, :3], "must be (4, 4, 4)"),
        ("channels", "twice/kernel", lambda leaf: leaf[:3], "must be (4, rows)"),
        ("channels", "else/kernel", lambda leaf: np.zeros((4, 1), np.int32), "else/kernel: private channels"),
        ("params", "head/bias", lambda leaf: leaf[0], "head/bias: shape (3,), must be (4, 3)"),
        ("params", "neck/bias", lambda leaf: np.zeros((4, 3)), "neck/bias: not in the shared variables"),
        ("other", "batch_stats/mean", lambda leaf: np.zeros((4, 3)), "batch_stats/mean: not in the shared"),
    ],
)
def test_rows_that_do_not_fit_are_refused(of_a_user, field, path, change, told):
    private = of_a_user.private(PICTURE_TASKS)
    values = {name: flatten(getattr(private, name)) for name in ("params", "other")}
    values.update(channels=dict(private.channels), rows=dict(private.rows))
    values[field][path] = change(values[field].get(path))
    values = {name: {k: v for k, v in flat.items() if v is not None} for name, flat in values.items()}
    trees = {name: unflatten(values[name]) for name in ("params", "other")}
    with pytest.raises(CwpsError, match=re.escape(told)):
        of_a_user.mixed(PrivateRows(values["channels"], values["rows"], **trees), pictures_of((4,)))
