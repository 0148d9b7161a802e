"""Label smoothing, moving averages, rates by stage and by depth, dropout: what they do, and when off."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from changes import changed
from conftest import TinyModel
from dense import dense
from stored_models import whole_models

from cwps_jax import CwpsError, TrainConfig, Trainer, channel_layout, cross_entropy, methods
from cwps_jax.core.trees import flatten
from cwps_jax.methods.network import Network
from cwps_jax.methods.pooled import Pooled
from cwps_jax.parallel import Parallel
from cwps_jax.train.evaluation import Predictor
from cwps_jax.train.state import start_state
from cwps_jax.train.step import make_norm_step

EXAMPLE = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
CWPS = methods.Cwps(
    search_distance="l2", lambda_=0.1, score_learning_rate=0.05, warm_up_share=0.25, hard_share=0.25
)
CONFIG = TrainConfig(method=CWPS, epochs=4, batch_size=16, learning_rate=0.05)
FINETUNE = dict(method="finetune", epochs=2)
ONE_STEP = dict(method="finetune", epochs=1, batch_size=48, momentum=0.0)
DOORS = {"jit": 1, "pmap": 8}


@dataclasses.dataclass(frozen=True)
class Recording(Parallel):
    """Keeps copies of the states before and after each step, and what was compiled."""

    states: list = dataclasses.field(default_factory=list)
    programs: list = dataclasses.field(default_factory=list)

    def compile(self, function, **options):
        program = super().compile(function, **options)
        self.programs.append(program)
        if "donate" not in options:
            return program  # not a training step
        copied = lambda tree: jax.tree.map(np.array, self.fetch(tree))

        def recorded(state, *args):
            before = copied(state)
            state, metrics = program(state, *args)
            self.states.append((before, copied(state)))
            return state, metrics

        recorded.flops, recorded.peak_bytes = 1.0, 1
        return recorded

    @property
    def compilations(self):
        return [program.compilations for program in self.programs]


@dataclasses.dataclass(frozen=True)
class Run:
    """What a training run returned, its states (before, after) of each step, and its losses.

    `compilations` counts those of every program of its trainer so far.
    """

    trained: object
    states: list
    losses: list
    compilations: list

    def stage(self, number):
        """The states of a stage of `CONFIG`, by its number: the epochs are 1, 2, 1 of 3 steps."""
        return self.states[(0, 3, 9)[number] : (3, 9, 12)[number]]


@pytest.fixture(scope="module")
def split():
    rng = np.random.default_rng(0)
    label = np.arange(48, dtype=np.int32) % 3
    images = rng.standard_normal((48, 8, 8, 1)) * (1 + label[:, None, None, None])
    return {"image": images.astype(np.float32), "label": label}


@pytest.fixture(scope="module")
def train(tiny_model, tiny_layout, tiny_variables, split):
    """Returns a function (changes to `CONFIG`) -> its `Run`; all runs of one door share a trainer."""
    start = flatten(tiny_variables["params"])
    pooled = Pooled(whole_models(tiny_layout, [start]), ("start",))
    trainers = {}

    def run(form=lambda config: config, **changes):
        config = form(changed(CONFIG, **changes))
        if config.parallel not in trainers:
            parallel = Recording(config.parallel, tuple(jax.devices()[: DOORS[config.parallel]]))
            trainers[config.parallel] = Trainer(tiny_model, tiny_layout, EXAMPLE, parallel=parallel)
        trainer, losses = trainers[config.parallel], []
        trainer.parallel.states.clear()
        trained = trainer.train(tiny_variables, split, config, pooled, lambda row: losses.append(row.loss))
        return Run(trained, list(trainer.parallel.states), losses, trainer.parallel.compilations)

    return run


def close(ours, theirs, **tolerance):
    chex.assert_trees_all_close(ours, theirs, **{"rtol": 1e-5, "atol": 1e-6, **tolerance})


def is_open(layout, gates):
    """Returns {path of a leaf: its gate, as the leaf is shaped}; True for leaves that are not shared."""
    found = {}
    for layer in layout.layers:
        for leaf, shape in zip(layer.leaves, layer.shapes, strict=True):
            gate = np.asarray(flatten(gates)[layer.path])
            found[leaf] = gate if gate.ndim == len(shape) else np.ravel(gate)
    return found


# Label smoothing.


@pytest.mark.parametrize("smoothing", [0.1, 0.6])
def test_smoothing_on_a_padded_head_is_optaxs_on_the_unpadded_one(smoothing):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((6, 7)).astype(np.float32)
    classes = np.array([3, 4, 7, 5, 3, 2])
    label = rng.integers(0, classes)
    ours = lambda x: cross_entropy(x, {"label": label, "classes": classes}, smoothing)
    gradient = jax.grad(lambda x: ours(x).sum())(logits)

    def optaxs(real, label):
        labels = optax.smooth_labels(jax.nn.one_hot(label, len(real)), smoothing)
        return optax.softmax_cross_entropy(real, labels)

    for row, count in enumerate(classes):
        value, of_real = jax.value_and_grad(optaxs)(logits[row, :count], label[row])
        np.testing.assert_allclose(ours(logits)[row], value, rtol=1e-5)
        np.testing.assert_allclose(gradient[row], np.pad(of_real, (0, 7 - count)), atol=1e-6)
    unpadded = cross_entropy(logits, {"label": label}, smoothing)
    np.testing.assert_allclose(unpadded[2], ours(logits)[2], rtol=1e-6)  # the row that is full


def test_the_trainer_smooths_the_labels(train, tiny_model, tiny_variables, split):
    logits, _ = tiny_model.apply(tiny_variables, split["image"], train=True, mutable=["batch_stats"])
    log_probabilities = np.asarray(jax.nn.log_softmax(logits))
    hard = -log_probabilities[np.arange(48), split["label"]]
    for smoothing in (0.0, 0.3):
        wanted = (1 - smoothing) * hard.mean() - smoothing * log_probabilities.mean()
        assert train(**ONE_STEP, label_smoothing=smoothing).losses == pytest.approx([wanted], rel=1e-5)


def test_smoothing_of_ones_own_loss_is_refused(tiny_model, tiny_layout, tiny_variables, split):
    own = lambda outputs, batch: jnp.square(outputs).mean(-1)
    trainer = Trainer(tiny_model, tiny_layout, EXAMPLE, loss=own)
    never = lambda progress: pytest.fail("it trained")
    with pytest.raises(CwpsError, match=r"^config.label_smoothing = 0.1: .* set it to 0$"):
        config = changed(CONFIG, **FINETUNE, label_smoothing=0.1)
        trainer.train(tiny_variables, split, config, observe=never)


# Moving averages.


def average_by_hand(states, decay):
    """Returns the average of a stage's children and statistics, in NumPy, from the recorded states."""
    variables = lambda state: {**state.own, **state.other}
    average = variables(states[0][0])
    for _, after in states:
        keep = lambda old, new: np.float64(decay) * old + (1 - decay) * np.float64(new)
        average = jax.tree.map(keep, average, variables(after))
    return average


@pytest.mark.parametrize("parallel", DOORS)
def test_fine_tuning_keeps_the_moving_average(train, parallel):
    run = train(**FINETUNE, ema=0.7, parallel=parallel)
    wanted = average_by_hand(run.states, 0.7)
    close(run.trained.params, wanted["params"])
    close(run.trained.other["batch_stats"], wanted["batch_stats"])
    last = run.states[-1][1]
    for path, leaf in flatten(last.own["params"]).items():
        assert np.abs(leaf - flatten(run.trained.params)[path]).max() > 1e-4, path
    if parallel == "pmap":
        by_jit = train(**FINETUNE, ema=0.7)
        close(run.trained.params, by_jit.trained.params, atol=1e-5)
        close(run.trained.other, by_jit.trained.other, atol=1e-5)


def test_cwps_averages_its_hard_stage_alone_and_its_closed_channels_stay_the_parents(
    train, tiny_layout, tiny_variables
):
    run = train(dense, ema=0.6)  # whose children are whole: the compact form's equals it by test
    assert [bool(before.average) for before, _ in run.states] == 9 * [False] + 3 * [True]
    wanted = average_by_hand(run.stage(2), 0.6)
    # It starts where the stage does: after the statistics are estimated anew.
    close(run.stage(2)[0][0].average["other"], run.stage(2)[0][0].other, rtol=0, atol=0)
    opened, found = is_open(tiny_layout, run.trained.gates), flatten(run.trained.params)
    assert 0 < np.mean([np.mean(gate) for gate in opened.values()]) < 1
    for path, leaf in flatten(wanted["params"]).items():
        gate = np.broadcast_to(opened.get(path, True), leaf.shape)
        np.testing.assert_allclose(found[path][gate], leaf[gate], rtol=1e-5, atol=1e-6, err_msg=path)
        parents = flatten(tiny_variables["params"])[path]  # the pool is the pre-trained model alone
        assert found[path][~gate].tobytes() == parents[~gate].tobytes(), path
    close(run.trained.other["batch_stats"], wanted["batch_stats"])


def test_without_an_average_the_last_step_is_kept_and_nothing_is_carried(train):
    run = train(**FINETUNE)
    assert all(state.average == {} for pair in run.states for state in pair)
    last = run.states[-1][1]
    chex.assert_trees_all_equal(run.trained.params, last.own["params"])
    chex.assert_trees_all_equal(run.trained.other, last.other)
    # Averaging only looks on: the steps themselves are the same.
    averaged = train(**FINETUNE, ema=0.9).states[-1][1]
    close(averaged.own["params"], last.own["params"])


def test_the_probes_average_leaves_the_backbone_as_it_is_to_the_bit(train, tiny_variables):
    trained = train(method="probe", epochs=2, ema=0.7).trained
    for path, leaf in flatten(tiny_variables["params"]).items():
        assert (flatten(trained.params)[path].tobytes() == leaf.tobytes()) != path.startswith("head/"), path
    chex.assert_trees_all_equal(trained.other["batch_stats"], tiny_variables["batch_stats"])


# Rates by stage.


def test_each_stage_has_its_own_rate(train):
    rates = [(1.0, 1.0, 1.0), (0.5, 1.0, 1.0), (1.0, 0.0, 1.0), (1.0, 1.0, 0.0)]
    full, half, no_soft, no_hard = [train(stage_rates=each, momentum=0.0) for each in rates]
    first = [jax.tree.map(np.subtract, *(one.own["params"] for one in run.states[0])) for run in (full, half)]
    close(first[1], jax.tree.map(lambda move: 0.5 * move, first[0]))
    ends = lambda run, n: [flatten(one.own["params"]) for one in (run.stage(n)[0][0], run.stage(n)[-1][1])]
    for run, still in ((full, None), (no_soft, 1), (no_hard, 2)):
        for number in range(3):
            before, after = ends(run, number)
            assert np.all(before["head/kernel"] == after["head/kernel"]) == (number == still)
    assert np.any(no_soft.stage(1)[-1][1].own["masks"]["conv2"]["kernel"])  # scores have a rate of their own


@pytest.mark.parametrize("method", [methods.Finetune(), methods.Probe()])
def test_other_methods_have_the_rate_itself(train, method, tiny_model, tiny_layout):
    assert not hasattr(method, "stage_rates")
    (stage,) = method.stages(Network(tiny_model, tiny_layout, EXAMPLE), CONFIG)
    assert {name: group.rate for name, group in stage.groups.items()} == {"params": CONFIG.learning_rate}
    # One step of plain SGD moves the head by its gradient, times the rate alone.
    settings = dict(ONE_STEP, method=method)
    moves = []
    for rate in (0.05, 0.025):
        before, after = train(**settings, learning_rate=rate).states[0]
        moves.append(
            np.subtract(before.own["params"]["head"]["kernel"], after.own["params"]["head"]["kernel"])
        )
    assert np.any(moves[0])
    close(moves[0], 2 * moves[1])


# Rates by depth.


def test_the_trainer_slows_early_layers_down_and_no_scores(train):
    depths = {"conv1": 1, "norm": 1, "conv2": 2, "head": 3}
    runs = [train(**ONE_STEP, layer_decay=decay) for decay in (1.0, 0.5)]
    plain, slowed = [
        flatten(jax.tree.map(np.subtract, after.own["params"], before.own["params"]))
        for before, after in (run.states[0] for run in runs)
    ]
    for path, move in slowed.items():
        wanted = plain[path] * 0.5 ** (3 - depths[path.split("/")[0]])
        np.testing.assert_allclose(move, wanted, rtol=1e-2, atol=1e-6, err_msg=path)
    # The same child at the begin of the soft stage, so the same first step of the scores.
    runs = [train(stage_rates=(0.0, 1.0, 1.0), layer_decay=decay) for decay in (1.0, 0.5)]
    masks = [run.stage(1)[0][1].own["masks"] for run in runs]
    assert np.any(masks[0]["conv1"]["kernel"])
    chex.assert_trees_all_equal(*masks)


# What compiles, and dropout.


def test_other_values_of_traced_options_compile_nothing(train):
    # Dense: the same shapes whatever is open.
    before = train(dense, ema=0.9, stage_rates=(1.0, 0.5, 0.1)).compilations
    assert train(dense, ema=0.5, stage_rates=(0.3, 1.0, 2.0), learning_rate=0.01).compilations == before
    assert train(dense, ema=0.999).compilations == before


@pytest.mark.parametrize("change", [{"ema": 0.5}, {"layer_decay": 0.35}, {"label_smoothing": 0.35}])
def test_a_static_option_has_a_program_of_its_own(train, change):
    settings = dict(FINETUNE, weight_decay=0.123)
    off = train(**settings)
    on = train(**settings, **change)
    assert on.compilations == [*off.compilations, 1]
    again = train(**settings)
    assert again.compilations == on.compilations
    chex.assert_trees_all_equal(again.trained.params, off.trained.params)


class Dropping(TinyModel):
    """Drops whole images of its features in training, as stochastic depth does, with a key of its own."""

    @nn.compact
    def __call__(self, images, train: bool = False):
        x = nn.relu(nn.Conv(6, (3, 3), use_bias=False, name="conv1")(images))
        if train:
            x *= 2.0 * jax.random.bernoulli(self.make_rng("dropout"), 0.5, (len(x), 1, 1, 1))
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        return nn.Dense(self.classes, name="head")(x.mean((1, 2)))


@pytest.mark.parametrize("parallel", DOORS)
def test_training_gives_new_dropout_keys_each_step_and_evaluation_needs_none(parallel, split):
    model, door = Dropping(), Recording(parallel, tuple(jax.devices()[: DOORS[parallel]]))
    trainer = Trainer(model, channel_layout(model, EXAMPLE), EXAMPLE, parallel=door)
    variables, losses = trainer.new_variables(0), []
    same = {"image": split["image"][:1].repeat(16, 0), "label": split["label"][:1].repeat(16)}
    config = changed(CONFIG, method="finetune", epochs=8, learning_rate=0.0, parallel=parallel)
    trained = trainer.train(variables, same, config, observe=lambda row: losses.append(row.loss))
    # The images are one and the same and nothing moves: only what is dropped can tell the steps apart.
    assert len(set(losses)) > 3
    plain = {"params": trained.params, **trained.other}
    outputs = Predictor(model, door)(plain, split, 16)
    np.testing.assert_allclose(outputs, model.apply(plain, split["image"]), rtol=1e-4, atol=1e-5)


def test_norm_statistics_of_each_batch_have_a_dropout_key_of_their_own(split):
    model, batch = Dropping(), {"image": split["image"][:16]}
    variables = jax.jit(model.init)(jax.random.key(0), batch["image"])
    state = start_state({"batch_stats": variables["batch_stats"]}, CONFIG)
    state = dataclasses.replace(state, own={"params": variables["params"]})
    network = Network(model, channel_layout(model, EXAMPLE), EXAMPLE)
    stage = methods.Finetune().stages(network, CONFIG)[0]
    statistics = jax.jit(make_norm_step(stage, model))
    means = [statistics(state, {}, n, batch)["batch_stats"]["norm"]["mean"] for n in (0, 1, 0)]
    assert np.any(means[0] != means[1]) and np.all(means[0] == means[2])
