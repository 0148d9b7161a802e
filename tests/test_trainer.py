"""The loop over the stages: its order of events, what it shares, and what it leaves behind."""

import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from changes import changed
from dense import dense
from stored_models import whole_models

from cwps_jax import TrainConfig, Trainer, channel_layout, methods
from cwps_jax.core.accounting import count
from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.methods.pooled import Pooled
from cwps_jax.parallel import Parallel
from cwps_jax.recorded import counted

EXAMPLE = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
CWPS = methods.Cwps(score_learning_rate=0.05, search_distance="l2")
CONFIG = TrainConfig(method=CWPS, epochs=6, batch_size=16, learning_rate=0.05)


class Pending:
    """A step's metrics, still on the device: whoever looks into them before `fetch` would wait."""

    def __init__(self, metrics):
        self.metrics = metrics

    def __getattr__(self, name):
        raise AssertionError(f"a step's metrics are read ({name}) before they are fetched")

    __getitem__ = __iter__ = __array__ = __float__ = lambda self, *_: self.__getattr__("value")


@dataclasses.dataclass(frozen=True)
class Recording(Parallel):
    """Logs steps and fetches, and keeps what was compiled."""

    events: list = dataclasses.field(default_factory=list)
    programs: list = dataclasses.field(default_factory=list)

    def compile(self, function, **options):
        program = super().compile(function, **options)
        self.programs.append(program)
        if "donate" not in options:
            return program  # not a training step

        def recorded(*args):
            state, metrics = program(*args)
            self.events.append("step")
            return state, Pending(metrics)

        recorded.flops, recorded.peak_bytes = 1.0, 1
        return recorded

    def fetch(self, tree, **options):
        is_pending = lambda leaf: isinstance(leaf, Pending)
        pending = [leaf for leaf in jax.tree.leaves(tree, is_leaf=is_pending) if is_pending(leaf)]
        self.events.append("metrics" if pending else "other")
        tree = jax.tree.map(lambda leaf: leaf.metrics if is_pending(leaf) else leaf, tree, is_leaf=is_pending)
        return super().fetch(tree, **options)

    @property
    def compilations(self):
        return sum(program.compilations for program in self.programs)


@pytest.fixture(scope="module")
def split():
    """48 images of three classes that a straight line separates: a bright corner each, and noise."""
    rng = np.random.default_rng(0)
    label = np.arange(48, dtype=np.int32) % 3
    images = 0.3 * rng.standard_normal((48, 8, 8, 1)).astype(np.float32)
    for index, kind in enumerate(label):
        images[index, kind * 2 : kind * 2 + 4, kind * 2 : kind * 2 + 4] += 1.0 + kind
    return {"image": images, "label": label}


@pytest.fixture(scope="module")
def recording():
    return Recording(devices=tuple(jax.devices()[:1]))


@pytest.fixture(scope="module")
def trainer(tiny_model, tiny_layout, recording):
    """One trainer for the whole file, as tasks of one run share it."""
    return Trainer(tiny_model, tiny_layout, EXAMPLE, parallel=recording)


@pytest.fixture(scope="module")
def pooled(tiny_layout, tiny_variables):
    """A pool of the pre-trained model alone."""
    start = flatten(tiny_variables["params"])
    return Pooled(whole_models(tiny_layout, [start]), ("pretrained",))


@pytest.fixture(scope="module")
def train(trainer, tiny_variables, split, pooled):
    """Returns a function (changes to the config) -> what was trained."""

    def run(
        variables=tiny_variables,
        data=split,
        observe=lambda progress: None,
        form=lambda config: config,
        **changes,
    ):
        return trainer.train(variables, data, form(changed(CONFIG, **changes)), pooled, observe)

    return run


@pytest.fixture(scope="module")
def trained(train):
    """The task of `CONFIG` as it stands, trained once."""
    return train()


def test_an_epoch_is_dispatched_whole_before_anything_of_it_is_fetched(train, recording):
    recording.events.clear()
    train()
    # 3 steps an epoch; stages of 2, 2 and 2 epochs; between them the state, and 3 batches of statistics.
    runs = [(event, len(list(group))) for event, group in itertools.groupby(recording.events)]
    epoch = [("step", 3), ("metrics", 1)]
    between = [event for event in runs if event[0] == "other"]
    assert [event for event in runs if event[0] != "other"] == 6 * epoch
    assert len(between) == 3
    for earlier, later in itertools.pairwise(runs):
        assert (earlier[0], later[0]) not in (("step", "other"), ("other", "metrics"))


def test_the_task_is_learned_and_every_stage_is_reported(train, tiny_layout):
    rows = []
    trained = train(observe=rows.append, epochs=12, learning_rate=0.2)
    assert [row.stage for row in rows] == 2 * ["warm-up"] + 3 * ["soft"] + 7 * ["hard"]
    assert [(row.method, row.epoch, row.epochs) for row in rows] == [("cwps", n + 1, 12) for n in range(12)]
    assert [row.epoch for row in rows if row.last_of_stage] == [2, 5, 12]
    assert rows[-1].loss < 0.5 * rows[0].loss
    assert rows[-1].metric > 0.8
    assert {row.private for row in rows[:2]} == {1.0}
    assert rows[-1].private == pytest.approx(count(tiny_layout, trained.gates).ratio, rel=1e-6)
    assert 0 < rows[-1].private < 1
    assert trained.epochs == 12


def test_what_was_trained_is_a_plain_model_with_the_parents_closed_channels(
    trained, tiny_variables, tiny_layout
):
    # The pool is the pre-trained model alone, so a closed channel is its own, to the bit.
    before, after = flatten(tiny_variables["params"]), flatten(trained.params)
    assert before.keys() == after.keys()
    for layer in tiny_layout.layers:
        is_open = flatten(trained.gates)[layer.path]
        for leaf in layer.leaves:
            gate = is_open if after[leaf].ndim == is_open.ndim else np.ravel(is_open)
            same = np.broadcast_to(gate, after[leaf].shape) | (before[leaf] == after[leaf])
            assert same.all(), leaf


def test_the_same_seed_gives_the_same_network_and_another_does_not(train, trained):
    again, other = train(), train(seed=1)
    same_bits = lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes()
    parts = lambda one: (one.params, one.other, one.gates)
    assert jax.tree.all(jax.tree.map(same_bits, parts(trained), parts(again)))
    assert not jax.tree.all(jax.tree.map(same_bits, trained.params, other.params))


def test_a_larger_lambda_never_keeps_more(train, tiny_layout):
    ratios = [count(tiny_layout, train(lambda_=lambda_).gates).ratio for lambda_ in (0.0, 0.3, 1.0)]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] > ratios[-1]


def test_a_budget_is_kept(train, tiny_layout):
    trained = train(budget=0.3, lambda_=0.0)
    assert 0 < count(tiny_layout, trained.gates).ratio <= 0.3


def test_another_task_compiles_nothing(train, recording, split):
    # In the compact form that depends on how many channels it opens: see test_compact.
    train(form=dense)
    before = recording.compilations
    fewer = {name: array[:33] for name, array in split.items()}
    train(
        data=fewer,
        epochs=4,
        lambda_=0.2,
        learning_rate=0.02,
        learning_rate_warmup=0.1,
        score_learning_rate=0.01,
        budget=0.9,
        budget_rate=3.0,
        warm_up_share=0.3,
        norm_batches=1,
        form=dense,
        seed=5,
    )
    assert recording.compilations == before


def test_another_optimizer_or_estimator_compiles(train, trained, recording):
    before = recording.compilations
    train(method="finetune", epochs=1, momentum=0.5)
    assert recording.compilations == before + 1
    train(epochs=3, estimator="straight_through")
    assert recording.compilations > before + 1


def test_fine_tuning_and_warm_up_are_one_program(train, trained, recording, tiny_layout):
    before = recording.compilations
    tuned = train(method="finetune", epochs=2)
    assert recording.compilations == before
    assert counted(tiny_layout, tuned.method.store(tuned.finished))["params_ratio"] == 1.0


def test_a_loss_that_is_not_finite_stops_the_training_and_names_the_image_or_else_the_rate(train, split):
    images = split["image"].copy()
    images[29] = np.inf
    with pytest.raises(FloatingPointError, match="the 'image' of training item 29 has a value that is inf"):
        train(data={**split, "image": images})
    with pytest.raises(FloatingPointError, match="the loss is .* images and labels are finite: lower"):
        train(learning_rate=1e30)


@pytest.mark.parametrize("method", ["finetune", CWPS], ids=["finetune", "cwps"])
def test_what_is_not_finite_after_training_is_never_given_back(train, split, tiny_variables, method):
    """One pixel that is no number may leave a CPU's loss finite: what was trained is looked at itself."""
    broken = unflatten({**flatten(tiny_variables), "batch_stats/norm/mean": np.full(6, np.nan, np.float32)})
    if method == "finetune":  # its training never reads these statistics
        with pytest.raises(FloatingPointError, match="^batch_stats/norm/mean is not finite after training"):
            train(broken, method=method, epochs=1)
    else:
        train(broken, epochs=3)  # estimated anew


def test_norm_statistics_are_estimated_anew_for_the_hard_stage(train, tiny_variables, split):
    norm = {"mean": np.full(6, 1e3, np.float32), "var": np.full(6, 1e6, np.float32)}
    corrupt = {**tiny_variables, "batch_stats": {"norm": norm}}
    # Nothing moves in the hard stage's steps, so the statistics are those of the final network's inputs.
    still = dict(epochs=3, learning_rate=0.0)
    repaired, clean = train(corrupt, **still), train(**still)
    chex.assert_trees_all_equal(repaired.params, clean.params)
    chex.assert_trees_all_equal(repaired.other, clean.other)
    features = jax.lax.conv_general_dilated(
        split["image"],
        repaired.params["conv1"]["kernel"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    stats = repaired.other["batch_stats"]["norm"]
    np.testing.assert_allclose(stats["mean"], features.mean((0, 1, 2)), rtol=0.02, atol=1e-3)
    np.testing.assert_allclose(stats["var"], features.var((0, 1, 2)), rtol=0.05)
    # Fine-tuning has no such stage: its few steps leave most of the damage.
    tuned = train(corrupt, method="finetune", **still)
    assert np.all(tuned.other["batch_stats"]["norm"]["mean"] > 500)


def test_statistics_that_are_not_numbers_are_repaired_too(train, tiny_variables):
    norm = {"mean": np.full(6, np.nan, np.float32), "var": np.full(6, np.inf, np.float32)}
    repaired = train({**tiny_variables, "batch_stats": {"norm": norm}}, epochs=3)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(repaired.other))


def test_a_bfloat16_model_keeps_float32_parameters(
    tiny_model, tiny_layout, tiny_variables, split, pooled, trained
):
    model = tiny_model.clone(dtype=jnp.bfloat16)
    assert channel_layout(model, EXAMPLE) == tiny_layout
    rows = []
    half = Trainer(model, tiny_layout, EXAMPLE, parallel=Parallel(devices=tuple(jax.devices()[:1])))
    config = changed(CONFIG, epochs=3)
    other = half.train(tiny_variables, split, config, pooled, rows.append)
    assert {leaf.dtype for leaf in jax.tree.leaves((other.params, other.other))} == {np.dtype(np.float32)}
    assert all(np.isfinite(row.loss) for row in rows)
    logits = jax.eval_shape(model.apply, tiny_variables, split["image"])
    assert logits.dtype == jnp.float32
    weights = other.params["conv1"]["kernel"]  # not rounded to bfloat16 either
    assert np.any(weights != weights.astype(jnp.bfloat16).astype(np.float32))
