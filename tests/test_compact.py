"""The compact hard stage: open channels alone are parameters, and nothing else is different."""

import dataclasses
import itertools
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from changes import changed
from dense import DenseCwps, dense
from stored_models import whole_models

import cwps_jax as cwps
from cwps_jax import CwpsError, TrainConfig, Trainer, channel_layout, methods, mix
from cwps_jax.core.channels import Layer, Layout
from cwps_jax.core.compact import choose_capacity, pack, placements, unpack
from cwps_jax.core.trees import flatten
from cwps_jax.methods.pooled import Pooled
from cwps_jax.parallel import Parallel
from cwps_jax.train.state import TrainState


def assert_same_bits(ours, theirs):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes())


@pytest.mark.parametrize("name", zoo.KINDS)
def test_unpacked_over_a_parent_is_mixed_to_the_bit(name):
    layout = zoo.layout(name)
    child, parent = zoo.random_params(layout, 0), zoo.random_params(layout, 1)
    both = jax.jit(
        lambda packed, child, gates, placed: (
            unpack(packed, parent, gates, placed),
            mix(parent, child, gates),
        )
    )
    for seed, share in ((2, 0.4), (3, 0.0), (4, 1.0)):
        gates = zoo.share_open(layout, seed, share)
        placed = placements(layout, gates, zoo.room(layout, gates))
        packed = pack(child, gates, placed)
        ours, theirs = both(packed, child, gates, placed)
        jax.tree.map(assert_same_bits, ours, theirs)
        for layer in layout.layers:
            is_open = np.ravel(flatten(gates)[layer.path])
            for leaf in layer.leaves:
                columns = zoo.kernel_channels(layer, leaf, flatten(child)[leaf])[is_open].T
                active, surplus = np.split(flatten(packed)[leaf], [is_open.sum()], axis=1)
                assert_same_bits(active, columns)
                assert not np.any(surplus)


def test_what_cannot_be_packed_is_refused():
    layout = zoo.layout("dense")
    child, gates = zoo.random_params(layout, 0), zoo.share_open(layout, 0)
    with pytest.raises(CwpsError, match=r"kernel: a capacity of 1 cannot hold 2 open channels"):
        placements(layout, gates, {"kernel": 1})
    with pytest.raises(CwpsError, match=r"bias: shape \(5,\) is not the packed form"):
        unpack(child, child, gates, placements(layout, gates, {"kernel": 2}))


class Wide(nn.Module):
    """Enough channels for capacities between none and all; with norms and a head."""

    classes: int = 3
    dtype: Any = None

    @nn.compact
    def __call__(self, images, train: bool = False):
        x = nn.Conv(24, (3, 3), use_bias=False, dtype=self.dtype, name="conv1")(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        x = nn.relu(nn.Conv(40, (3, 3), strides=2, dtype=self.dtype, name="conv2")(x))
        x = nn.relu(nn.Dense(32, dtype=self.dtype, name="dense")(x.mean((1, 2))))
        return nn.Dense(self.classes, name="head")(x)


@dataclasses.dataclass(frozen=True)
class Recording(Parallel):
    """Keeps the states that were fetched, what stages read, and what was compiled."""

    states: list = dataclasses.field(default_factory=list)
    placed: list = dataclasses.field(default_factory=list)
    programs: list = dataclasses.field(default_factory=list)

    def fetch(self, tree, **options):
        tree = super().fetch(tree, **options)
        self.states.extend([tree] if isinstance(tree, TrainState) else [])
        return tree

    def place(self, tree):
        self.placed.append(super().place(tree))
        return self.placed[-1]

    @property
    def read(self):
        pairs = itertools.pairwise(self.placed)
        return [after for before, after in pairs if isinstance(before, TrainState)]

    def compile(self, function, **options):
        self.programs.append(super().compile(function, **options))
        return self.programs[-1]

    @property
    def compilations(self):
        return sum(program.compilations for program in self.programs)


CWPS = methods.Cwps(warm_up_share=0.2, hard_share=0.6, score_learning_rate=0.1, search_distance="l2")
CONFIG = TrainConfig(
    method=CWPS,
    epochs=5,
    batch_size=16,
    learning_rate=0.05,
    weight_decay=0.02,
    budget=0.35,
    norm_batches=2,
)
SETTINGS = {
    "sgd": {"momentum": 0.9, "layer_decay": 0.7},
    "adamw": {"optimizer": "adamw", "learning_rate": 0.002},
    "average": {"ema": 0.8},
}


def bright_corners(count: int, seed: int) -> dict[str, np.ndarray]:
    """Returns images of three classes that a straight line separates."""
    rng = np.random.default_rng(seed)
    label = np.arange(count, dtype=np.int32) % 3
    images = 0.3 * rng.standard_normal((count, 8, 8, 1)).astype(np.float32)
    for index, kind in enumerate(label):
        images[index, kind * 2 : kind * 2 + 4, kind * 2 : kind * 2 + 4] += 1.0 + kind
    return {"image": images, "label": label}


@pytest.fixture(scope="module")
def wide():
    """(a model, its layout, its variables on the host)."""
    model, images = Wide(), jnp.zeros((1, 8, 8, 1))
    return (
        model,
        channel_layout(model, images),
        jax.device_get(jax.jit(model.init)(jax.random.key(0), images)),
    )


@pytest.fixture(scope="module")
def run(wide):
    """Returns a function (trainer or its parallel, changes to the config) -> what was trained."""
    model, layout, variables = wide
    start = flatten(variables["params"])
    pooled = Pooled(whole_models(layout, [start]), ("pretrained",))
    example = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    trainers = {}

    def train(parallel, task=0, form=lambda config: config, **changes):
        trainer = trainers.setdefault(id(parallel), Trainer(model, layout, example, parallel=parallel))
        config = form(changed(CONFIG, **changes))
        return trainer.train(variables, bright_corners(64, task), config, pooled)

    return train


@pytest.fixture(scope="module")
def one_device():
    return Recording(devices=tuple(jax.devices()[:1]))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_hard_stage_ends_where_the_dense_form_ends(name, run, one_device, wide):
    _, layout, variables = wide
    whole = run(one_device, form=dense, **SETTINGS[name])
    compact = run(one_device, **SETTINGS[name])
    chex.assert_trees_all_equal(compact.gates, whole.gates)
    chex.assert_trees_all_close(compact.params, whole.params, rtol=0, atol=1e-4)
    chex.assert_trees_all_close(compact.other, whole.other, rtol=0, atol=1e-3)
    state, before = one_device.states[-1], flatten(variables["params"])
    child = flatten(state.own["params"])
    own, all_channels = 0, 0
    for layer in layout.layers:
        is_open = np.ravel(flatten(compact.gates)[layer.path])
        assert 0 < is_open.sum() < layer.channels  # or the test says little
        for leaf in layer.leaves:
            after = zoo.kernel_channels(layer, leaf, flatten(compact.params)[leaf])
            same = after == zoo.kernel_channels(layer, leaf, before[leaf])
            np.testing.assert_array_equal(same.all(axis=1), ~is_open, err_msg=leaf)  # the parent's, or moved
            for tree in (state.own["params"], *moments(state, layout)):
                assert not np.any(flatten(tree)[leaf][:, is_open.sum() :]), leaf  # padding
                own += flatten(tree)[leaf].nbytes
                all_channels += before[leaf].nbytes
            assert child[leaf].shape[1] < is_open.sum() + 8
    assert own < 0.6 * all_channels
    assert len(moments(state, layout)) == (2 if name == "adamw" else 1)


def moments(state: TrainState, layout: Layout) -> list:
    """Returns the trees of an optimizer's state that have the child's structure."""
    is_tree = lambda leaf: isinstance(leaf, dict)
    return [one for one in jax.tree.leaves(state.optimizers["params"], is_leaf=is_tree) if is_tree(one)]


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_eight_devices_train_open_channels_as_one_does(mode, run, one_device):
    parallel = Parallel(mode)
    for changes in (SETTINGS["sgd"], {"budget": 0.015}):
        alone, together = run(one_device, **changes), run(parallel, **changes)
        chex.assert_trees_all_equal(together.gates, alone.gates)
        chex.assert_trees_all_close(together.params, alone.params, rtol=0, atol=1e-4)
    assert not np.any(alone.gates["conv2"]["kernel"])  # leaves without a column


def test_a_task_whose_open_channels_fit_compiles_nothing(run, one_device):
    trained = run(one_device, **SETTINGS["sgd"])
    before = one_device.compilations
    other = run(one_device, task=1, **SETTINGS["sgd"])
    opened = [[int(np.sum(gate)) for gate in jax.tree.leaves(one.gates)] for one in (trained, other)]
    assert opened[0] != opened[1]
    assert one_device.compilations == before


def test_a_parent_is_held_in_the_type_that_the_model_casts_it_to(wide, monkeypatch):
    model, layout = Wide(dtype=jnp.bfloat16), wide[1]
    start = flatten(wide[2]["params"])
    models = whole_models(layout, [start])
    example, trained = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32), []
    for types in (None, {}):
        parallel = Recording(devices=tuple(jax.devices()[:1]))
        trainer = Trainer(model, layout, example, parallel=parallel)
        if types is not None:
            monkeypatch.setattr(trainer.network, "cast_types", types)
        pooled = Pooled(models, ("pretrained",))
        trained.append(trainer.train(wide[2], bright_corners(64, 0), CONFIG, pooled))
        of_each_stage = [
            {leaf.dtype for leaf in jax.tree.leaves(read.get("parent", {}))} for read in parallel.read
        ]
        whole = np.dtype(np.float32)
        assert of_each_stage == [set(), {whole}, {np.dtype(jnp.bfloat16) if types is None else whole}]
    for one, other in zip(*(jax.tree.leaves((each.params, each.other)) for each in trained), strict=True):
        assert_same_bits(one, other)


def test_a_learned_task_is_stored_and_read_back_to_the_bit(wide, tmp_path, monkeypatch):
    monkeypatch.setitem(methods.METHODS, DenseCwps.name, DenseCwps)
    model, layout, variables = wide
    data = cwps.TaskData(*(bright_corners(count, seed) for seed, count in enumerate((96, 24, 48))), 3)
    config = dataclasses.replace(CONFIG, epochs=10)
    trainer = cwps.make_trainer(model, data, config=config)
    pool = cwps.Pool.create(tmp_path / "pool", variables, layout)
    reached = {}
    for form in ("compact", "dense"):
        chosen = dense(config) if form == "dense" else config
        learned = cwps.learn_task(pool, form, model, data, config=chosen, trainer=trainer)
        stored = cwps.Pool.open(pool.folder).effective(form)
        logits = [trainer.predictor(model)(one, data.test, 16) for one in (stored, learned.variables)]
        np.testing.assert_array_equal(*logits)
        assert learned.params_ratio <= config.budget
        reached[form] = learned.metric
    assert reached["compact"] == pytest.approx(reached["dense"], abs=0.05)
    assert reached["compact"] > 0.8


def test_a_capacity_is_shared_while_little_work_is_wasted():
    layers = [Layer(name, (name,), ((9, 64),), (1, 64)) for name in ("large", "small")]
    layout, work = Layout(tuple(layers), (), ()), {"large": 9.0, "small": 1.0}
    gates = lambda large, small: {"large": np.arange(64)[None] < large, "small": np.arange(64)[None] < small}
    choose = lambda opened, *known: choose_capacity(
        layout, gates(*opened), [dict(zip(("large", "small"), one, strict=True)) for one in known], work
    )
    assert choose((10, 20)) == {"large": 16, "small": 24}  # of its own, in steps of 8
    assert choose((10, 20), (16, 24)) == {"large": 16, "small": 24}
    assert choose((10, 20), (24, 64), (16, 32)) == {"large": 16, "small": 32}  # the cheapest that covers it
    assert choose((12, 30), (16, 24)) == {"large": 24, "small": 40}  # a union, with room for others
    assert choose((10, 20), (64, 64)) == {"large": 16, "small": 24}  # too much padding
    assert choose((60, 20), (10, 64)) == {"large": 64, "small": 64}
    assert choose((0, 0)) == {"large": 0, "small": 0}
