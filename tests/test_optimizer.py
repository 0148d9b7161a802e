"""Updates: what a channel that the task does not own may never feel, decay, schedule, and one whole step."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from dense import DenseCwps

from cwps_jax import TrainConfig, accuracy, cross_entropy, gates, methods, mix
from cwps_jax.core.masks import all_gates
from cwps_jax.core.trees import flatten, select
from cwps_jax.methods.method import Begun, Moment, cosine
from cwps_jax.methods.network import Network
from cwps_jax.methods.optimizers import child_optimizer, gated_weight_decay
from cwps_jax.methods.pooled import Pooled
from cwps_jax.train.state import begun_state, make_plan, start_state
from cwps_jax.train.step import at_the_end, make_step, rate

EXAMPLE = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
WARM_UP, SOFT, HARD = range(3)


def same_bits(ours, theirs):
    return np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    images = rng.standard_normal((16, 8, 8, 1)).astype(np.float32)
    return {"image": images, "label": rng.integers(0, 3, 16).astype(np.int32)}


@pytest.fixture(scope="module")
def stages_of(tiny_model, tiny_layout):
    """Returns a function (config) -> the stages of its method."""
    network = Network(tiny_model, tiny_layout, EXAMPLE)
    return lambda config: methods.resolve(config.method).stages(network, config)


@pytest.fixture
def step_of(tiny_model, tiny_layout, tiny_variables, stages_of):
    """Returns a function (config, stage's number, own tree) -> its jitted step, a state and its plan."""

    def build(config, stage, own):
        stage = stages_of(config)[stage]
        step = jax.jit(make_step(stage, tiny_model, cross_entropy, accuracy))
        state = start_state({"batch_stats": tiny_variables["batch_stats"]}, config)
        fresh = {name: group.optimizer.init(own[name]) for name, group in stage.groups.items()}
        state = begun_state(state, stage, Begun(own), fresh)
        return step, state, make_plan(config, stage, first_epoch=0, epochs=4, steps_per_epoch=5)

    return build


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_decay_and_momentum_never_move_a_closed_channel(
    optimizer, step_of, tiny_layout, tiny_variables, moved, batch
):
    settings = dict(momentum=0.9, weight_decay=0.1, learning_rate=0.1, method=DenseCwps())
    config = TrainConfig(epochs=4, optimizer=optimizer, **settings)
    step, state, plan = step_of(config, HARD, {"params": tiny_variables["params"]})
    # Moments of the soft stage, in which every channel was open.
    state = dataclasses.replace(state, optimizers=jax.tree.map(jnp.ones_like, state.optimizers))
    is_open = zoo.random_gates(tiny_layout, 0)
    parent = moved(select(tiny_variables["params"], tiny_layout.layer_paths), 0.1, 1)
    frozen = {"parent": parent, "gates": is_open}
    for _ in range(4):
        state, _ = step(state, frozen, plan, batch)
    before, after = flatten(tiny_variables["params"]), flatten(state.own["params"])
    for layer in tiny_layout.layers:
        for leaf in layer.leaves:
            old = zoo.kernel_channels(layer, leaf, np.asarray(before[leaf]))
            new = zoo.kernel_channels(layer, leaf, np.asarray(after[leaf]))
            for channel, own in enumerate(np.ravel(flatten(is_open)[layer.path])):
                assert same_bits(old[channel], new[channel]) != own, (leaf, channel)
    for path in (*tiny_layout.private_paths, *tiny_layout.head_paths):
        assert np.all(before[path] != after[path]), path


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_is_on_kernels_alone_times_their_gate(optimizer, tiny_layout, tiny_variables):
    params = jax.tree.map(lambda leaf: leaf + 0.5, tiny_variables["params"])
    soft = {
        layer.path.split("/")[0]: {"kernel": jax.random.uniform(jax.random.key(0), layer.gate_shape)}
        for layer in tiny_layout.layers
    }
    zeros = jax.tree.map(jnp.zeros_like, params)
    config = TrainConfig(optimizer=optimizer, weight_decay=0.3)
    for rule in (gated_weight_decay(0.3, tiny_layout), child_optimizer(config, tiny_layout)):
        for gate in (soft, None):
            decay = flatten(rule.update(zeros, rule.init(params), params, gates=gate)[0])
            for path, leaf in flatten(params).items():
                wanted = np.zeros_like(leaf)
                if path.endswith("kernel"):  # the head's too
                    wanted = 0.3 * leaf * (flatten(gate)[path] if gate and path in flatten(gate) else 1.0)
                np.testing.assert_allclose(decay[path], wanted, rtol=1e-6, err_msg=path)


def test_weight_decay_gives_the_gates_no_gradient(tiny_layout, tiny_variables):
    params = tiny_variables["params"]
    rule = gated_weight_decay(0.3, tiny_layout)

    def total(scores):
        decay, _ = rule.update(params, rule.init(params), params, gates=gates(scores, 1.0))
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(decay))

    scores = {
        layer.path.split("/")[0]: {"kernel": jnp.zeros(layer.gate_shape)} for layer in tiny_layout.layers
    }
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(jax.grad(total)(scores)))


@pytest.mark.parametrize("warmup", [0, 4])
def test_the_rate_rises_then_falls_by_half_a_cosine_to_zero(warmup):
    total, peak = 20, 0.3
    traced = []

    @jax.jit
    def at(step, total, warmup, peak):
        traced.append(1)
        return peak * rate(step, total, warmup, cosine)

    values = np.array([at(step, total, warmup, peak) for step in range(total + 3)])
    rise = peak * np.arange(1, warmup + 1) / max(warmup, 1)
    progress = np.arange(total - warmup + 1) / (total - warmup)
    fall = peak * (1 + np.cos(np.pi * progress)) / 2
    np.testing.assert_allclose(values[: total + 1], [*rise, *fall], atol=1e-7)
    np.testing.assert_allclose(values[total:], 0.0, atol=1e-7)
    at(3, 50, 10, 0.1)
    assert len(traced) == 1


def test_the_plan_counts_steps_over_all_stages(stages_of):
    method = methods.Cwps(budget_rate=10.0, warm_up_share=0.25, hard_share=0.25)
    config = TrainConfig(method=method, epochs=8, learning_rate_warmup=0.25, budget=0.3)
    stages = stages_of(config)
    plan = make_plan(config, stages[SOFT], first_epoch=stages[WARM_UP].epochs, epochs=8, steps_per_epoch=5)
    assert [stage.epochs for stage in stages] == [2, 4, 2]
    assert (int(plan.stage_start), int(plan.total_steps), int(plan.warmup_steps)) == (10, 40, 10)
    # Over the whole soft stage an excess of 1 moves lambda by budget_rate.
    np.testing.assert_allclose(plan.budget_rate * 20, 10.0, rtol=1e-6)


def test_a_soft_step_descends_cross_entropy_plus_lambda_times_sparsity(
    step_of, tiny_model, tiny_layout, tiny_variables, moved, batch
):
    method = methods.Cwps(lambda_=0.4, score_optimizer="sgd", score_learning_rate=0.05)
    config = TrainConfig(method=method, epochs=4, momentum=0.0, learning_rate=0.2)
    masks = {
        layer.path.split("/")[0]: {"kernel": jax.random.normal(jax.random.key(1), layer.gate_shape)}
        for layer in tiny_layout.layers
    }
    parent = moved(select(tiny_variables["params"], tiny_layout.layer_paths), 0.1, 1)
    step, state, plan = step_of(config, SOFT, {"params": tiny_variables["params"], "masks": masks})
    state = dataclasses.replace(state, step=jnp.int32(7))
    after, metrics = step(state, {"parent": parent}, plan, batch)
    # Written out: step 7 is batch 3 of 5 in its epoch, so s = 1/100 + (100 - 1/100) * 2/4.
    temperature = 0.01 + (100 - 0.01) * 0.5
    pace = 0.5 * (1 + np.cos(np.pi * 7 / 20))

    @jax.jit
    def loss(child, masks):
        m = gates(masks, temperature)
        logits, _ = tiny_model.apply(
            {"params": mix(parent, child, m), "batch_stats": tiny_variables["batch_stats"]},
            batch["image"],
            train=True,
            mutable=["batch_stats"],
        )
        nll = -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(16), batch["label"]])
        sparsity = (54 * m["conv1"]["kernel"].mean() + 440 * m["conv2"]["kernel"].mean()) / 494
        return nll + 0.4 * sparsity, nll

    (_, nll), (of_child, of_masks) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
        state.own["params"], masks
    )
    np.testing.assert_allclose(metrics["loss"], nll, rtol=1e-5)
    descend = lambda pace: lambda leaf, gradient: leaf - pace * gradient
    child = jax.tree.map(descend(0.2 * pace), state.own["params"], of_child)
    scores = jax.tree.map(descend(0.05 * pace), masks, of_masks)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, after.own["params"], child)
    jax.tree.map(close, after.own["masks"], jax.tree.map(lambda leaf: np.clip(leaf, -6, 6), scores))
    assert float(metrics["lambda"]) == float(after.lambda_base) == pytest.approx(0.4)  # no budget: it stays
    opened = sum(np.sum(masks[f"conv{n}"]["kernel"] > 0) * size for n, size in ((1, 9), (2, 55)))
    np.testing.assert_allclose(metrics["private"], (opened + 12) / 506, rtol=1e-6)


def test_the_budget_steers_lambda_in_the_soft_step(step_of, stages_of, tiny_layout, tiny_variables, batch):
    masks = jax.tree.map(jnp.float32, all_gates(tiny_layout, True))  # all open: 1.0 of the backbone
    settings = dict(score_optimizer="sgd", score_learning_rate=0.1, budget_rate=1.0, budget_gain=0.5)
    settings |= dict(warm_up_share=0.25, hard_share=0.25)
    found, scores = {}, {}
    for budget in (0.2, 0.9999, 1.0):
        config = TrainConfig(method=methods.Cwps(**settings), epochs=4, momentum=0.0, budget=budget)
        if not found:
            step, state, _ = step_of(config, SOFT, {"params": tiny_variables["params"], "masks": masks})
            state = dataclasses.replace(state, lambda_base=jnp.float32(0.4), step=jnp.int32(5))
        soft = stages_of(config)[SOFT]
        plan = make_plan(config, soft, first_epoch=1, epochs=4, steps_per_epoch=5)
        after, metrics = step(state, {"parent": tiny_variables["params"]}, plan, batch)
        found[budget] = float(metrics["lambda"]), float(after.lambda_base)
        scores[budget] = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(after.own["masks"]))
    # One of the soft stage's 10 steps at an excess of 0.8: the gain at once, the rate a tenth of it.
    assert found[0.2] == pytest.approx((0.4 + 0.5 * 0.8, 0.4 + 0.1 * 0.8))
    assert found[0.9999] == pytest.approx((0.4, 0.4), abs=1e-3)
    assert found[1.0] == pytest.approx((0.4, 0.4))
    assert scores[0.2] < scores[1.0] - 0.1  # the loss has felt it


def test_the_probe_moves_nothing_but_the_head(
    step_of, stages_of, tiny_model, tiny_layout, tiny_variables, batch
):
    config = TrainConfig(method="probe", epochs=4, weight_decay=0.1, learning_rate=0.1)
    (stage,) = stages_of(config)
    network, nothing = Network(tiny_model, tiny_layout, EXAMPLE), Pooled(None, ())
    begun = stage.begin(Moment(network, nothing, config, tiny_variables, {}, {}, {}))
    step, state, plan = step_of(config, 0, begun.own)
    for _ in range(2):
        state, _ = step(state, begun.frozen, plan, batch)
    before, after = (
        flatten(tiny_variables["params"]),
        flatten(at_the_end(stage, state.own, begun.frozen).params),
    )
    assert before.keys() == after.keys()
    for path in after:
        assert same_bits(before[path], after[path]) != path.startswith("head/"), path
    chex.assert_trees_all_equal(state.other["batch_stats"], tiny_variables["batch_stats"])


@pytest.mark.parametrize(
    ("warm_up", "hard"), [(0.25, 0.25), (0.2, 0.6), (0.0, 0.0), (0.9, 0.05), (0.05, 0.9)]
)
def test_all_stages_together_have_the_epochs_that_fine_tuning_has(tiny_model, tiny_layout, warm_up, hard):
    network = Network(tiny_model, tiny_layout, EXAMPLE)
    method = methods.Cwps(warm_up_share=warm_up, hard_share=hard)
    for epochs in range(3, 20):
        taken = [one.epochs for one in method.stages(network, TrainConfig(epochs=epochs))]
        assert sum(taken) == epochs and min(taken) >= 1, (epochs, taken)
