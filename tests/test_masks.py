"""Scores, gates, mixing, sparsity, the budget."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from cwps_jax.core import budgets, masks
from cwps_jax.core.mixing import mix
from cwps_jax.core.trees import flatten, select, unflatten
from cwps_jax.errors import CwpsError


def assert_same_bits(ours, theirs):
    assert flatten(ours).keys() == flatten(theirs).keys()
    for path, leaf in flatten(ours).items():
        other = np.asarray(flatten(theirs)[path])
        assert (np.asarray(leaf).dtype, np.asarray(leaf).tobytes()) == (other.dtype, other.tobytes()), path


def constant(layout, value):
    return unflatten({layer.path: jnp.full(layer.gate_shape, value) for layer in layout.layers})


# Mixing


@pytest.mark.parametrize("name", zoo.KINDS)
def test_gates_all_off_is_the_parent_and_all_on_the_child(name):
    layout = zoo.layout(name)
    parent, child = zoo.random_params(layout, 0), zoo.random_params(layout, 1)
    # What no gate governs (norms) is the child's either way.
    shared = {**flatten(child), **flatten(select(parent, layout.layer_paths))}
    assert_same_bits(mix(parent, child, masks.all_gates(layout, False)), unflatten(shared))
    assert_same_bits(mix(parent, child, masks.all_gates(layout, True)), child)


def test_saturated_soft_gates_are_the_parent_and_the_child(tiny_layout, tiny_variables, moved):
    child = tiny_variables["params"]
    parent = moved(child, 1.0, 0)
    for score, wanted in ((6.0, child), (-6.0, parent)):
        gates = masks.gates(constant(tiny_layout, score), 100.0)
        mixed = flatten(mix(parent, child, gates))
        for path in tiny_layout.layer_paths:
            np.testing.assert_allclose(mixed[path], flatten(wanted)[path], rtol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", ["dense", "conv", "grouped", "depthwise", "transposed_swapped"])
@pytest.mark.parametrize("hard", [True, False])
def test_mixing_weights_is_mixing_outputs_channel_by_channel(name, hard):
    kind, layout = zoo.KINDS[name], zoo.layout(name)
    parent, child = zoo.random_params(layout, 0), zoo.random_params(layout, 1)
    gates = zoo.random_gates(layout, 2)
    if not hard:
        gates = {"kernel": jax.random.uniform(jax.random.key(0), layout.layers[0].gate_shape)}
    inputs = jax.random.normal(jax.random.key(1), kind.shape)

    @jax.jit
    def outputs(parent, child, gates):
        apply = lambda params: kind.model.apply({"params": params}, inputs)
        return apply(mix(parent, child, gates)), apply(parent), apply(child)

    mixed, of_parent, of_child = outputs(parent, child, gates)
    gate = np.ravel(gates["kernel"])  # channels are last in the output
    chosen = np.where(gate, of_child, of_parent) if hard else gate * of_child + (1 - gate) * of_parent
    np.testing.assert_allclose(mixed, chosen, rtol=1e-5, atol=1e-5)
    assert np.abs(np.asarray(of_child) - of_parent).min(axis=-1).max() > 1e-2  # there is a choice


@pytest.mark.parametrize("hard", [True, False])
def test_no_gradient_reaches_the_parent_and_the_childs_is_its_gate(tiny_layout, tiny_variables, moved, hard):
    child = tiny_variables["params"]
    gates = zoo.random_gates(tiny_layout, 0)
    if not hard:
        gates = masks.gates(moved(constant(tiny_layout, 0.0), 1.0, 0), 1.0)

    def total(parent, child):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(mix(parent, child, gates)))

    of_parent, of_child = jax.grad(total, argnums=(0, 1))(moved(child, 1.0, 0), child)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_parent))
    for layer in tiny_layout.layers:
        gate = np.asarray(flatten(gates)[layer.path], np.float32)
        for leaf, shape in zip(layer.leaves, layer.shapes, strict=True):
            wanted = np.broadcast_to(gate if len(shape) == gate.ndim else gate.ravel(), shape)
            np.testing.assert_allclose(flatten(of_child)[leaf], wanted, rtol=1e-6, err_msg=leaf)
    for path in (*tiny_layout.private_paths, *tiny_layout.head_paths):
        np.testing.assert_array_equal(flatten(of_child)[path], 1.0, err_msg=path)


def test_mixing_keeps_the_childs_dtype(tiny_layout, tiny_variables):
    child = tiny_variables["params"]
    parent = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), child)
    for gates in (masks.all_gates(tiny_layout, False), constant(tiny_layout, 0.5)):
        assert {leaf.dtype for leaf in jax.tree.leaves(mix(parent, child, gates))} == {jnp.dtype("float32")}


def test_trees_that_do_not_belong_together_are_refused(tiny_layout, tiny_variables):
    child, gates = tiny_variables["params"], masks.all_gates(tiny_layout, True)
    with pytest.raises(CwpsError, match="conv2/kernel: the parent has no such leaf"):
        mix({"conv1": child["conv1"], "conv2": {"bias": child["conv2"]["bias"]}}, child, gates)
    wider = {**child, "conv1": {"kernel": np.zeros((3, 3, 1, 7))}}
    with pytest.raises(CwpsError, match=r"conv1/kernel: parent \(3, 3, 1, 7\) and child \(3, 3, 1, 6\)"):
        mix(wider, child, gates)


# Sparsity


@pytest.mark.parametrize("name", ["conv", "scanned", "dense_general_of_each_item", "attention"])
@pytest.mark.parametrize("seed", [0, 1])
def test_sparsity_weighs_layers_by_their_parameters(name, seed):
    layout = zoo.layout(name)
    params = zoo.random_params(layout, 0)
    rng = np.random.default_rng(seed)
    gates = {layer.path: rng.random(layer.gate_shape, np.float32) for layer in layout.layers}
    sizes = {layer.path: sum(flatten(params)[leaf].size for leaf in layer.leaves) for layer in layout.layers}
    wanted = sum(sizes[path] * gate.mean() for path, gate in gates.items()) / sum(sizes.values())
    np.testing.assert_allclose(masks.sparsity(unflatten(gates), params), wanted, rtol=1e-5)
    assert 0 < wanted < 1


def test_sparsity_is_the_private_share_of_the_layers_from_0_to_1(tiny_layout, tiny_variables):
    params = tiny_variables["params"]
    for gates in (masks.all_gates(tiny_layout, False), constant(tiny_layout, 0.0)):
        assert float(masks.sparsity(gates, params)) == 0.0
    for gates in (masks.all_gates(tiny_layout, True), constant(tiny_layout, 1.0)):
        np.testing.assert_allclose(masks.sparsity(gates, params), 1.0, rtol=1e-6)
    # One channel of conv2 (9 * 6 weights and a bias) of 54 + 8 * 55 parameters of layers.
    one = masks.all_gates(tiny_layout, False)
    one["conv2"]["kernel"] = one["conv2"]["kernel"].at[..., 3].set(True)
    np.testing.assert_allclose(masks.sparsity(one, params), 55 / (54 + 8 * 55), rtol=1e-6)


# Annealing


@pytest.mark.parametrize("maximum", [100.0, 10.0])
def test_temperature_rises_linearly_inside_an_epoch(maximum):
    batches = 7
    for batch in range(batches):
        b = batch + 1  # the paper counts from 1
        wanted = 1 / maximum + (maximum - 1 / maximum) * (b - 1) / (batches - 1)
        np.testing.assert_allclose(masks.temperature(batch, batches, maximum), wanted, rtol=1e-6)
    np.testing.assert_allclose(masks.temperature(0, 1, maximum), maximum)


def test_annealing_compiles_once():
    traced = []

    @jax.jit
    def gate(score, batch, batches, maximum):
        traced.append(1)
        temperature = masks.temperature(batch, batches, maximum)
        return masks.gates({"kernel": score}, temperature)["kernel"]

    values = [
        float(gate(jnp.float32(0.5), b, n, m)) for b, n, m in ((0, 3, 100.0), (2, 3, 100.0), (0, 1, 50.0))
    ]
    assert len(traced) == 1
    np.testing.assert_allclose(values, [1 / (1 + np.exp(-0.005)), 1.0, 1.0], rtol=1e-6)


# |s * e| from 0 to 600, both signs.
SCORES = np.array([-6.0, -3.3, -0.7, -0.05, 0.0, 0.05, 0.7, 3.3, 6.0], np.float32)


def sigmoid(x):
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(x, np.float64)))


@pytest.mark.parametrize("temperature", [0.01, 1.0, 37.0, 100.0])
def test_the_compensated_derivative_does_not_depend_on_the_temperature(temperature):
    gate = lambda e: masks.gates({"kernel": e}, temperature)["kernel"]
    values, derivatives = jax.vmap(jax.value_and_grad(gate))(jnp.asarray(SCORES))
    np.testing.assert_allclose(values, sigmoid(temperature * np.float64(SCORES)), rtol=1e-5, atol=1e-7)
    wanted = 100 * sigmoid(SCORES) * sigmoid(-np.float64(SCORES))
    assert np.all(np.isfinite(derivatives))
    np.testing.assert_allclose(derivatives, wanted, rtol=1e-5)


def test_the_compensation_uses_the_maximum_that_it_is_told():
    gate = lambda e: masks.gates({"kernel": e}, 3.0, maximum=20.0)["kernel"]
    np.testing.assert_allclose(jax.grad(gate)(0.0), 20 / 4, rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.01, 1.0, 37.0])
def test_the_uncompensated_derivative_is_the_plain_one(temperature):
    gate = lambda e: masks.gates({"kernel": e}, temperature, compensate=False)["kernel"]
    values, derivatives = jax.vmap(jax.value_and_grad(gate))(jnp.asarray(SCORES))
    s = sigmoid(temperature * np.float64(SCORES))
    np.testing.assert_allclose(values, s, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(derivatives, temperature * s * (1 - s), rtol=1e-4, atol=1e-5)


def test_straight_through_thresholds_and_passes_the_gradient():
    gate = lambda e: masks.gates({"kernel": e}, 1.0, estimator="straight_through")["kernel"]
    scores = jnp.array([-3.0, 0.0, 0.0999, 0.1, 0.15, 5.0])
    values, derivatives = jax.vmap(jax.value_and_grad(gate))(scores)
    np.testing.assert_array_equal(values, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(derivatives, 1.0)
    hard = masks.gates({"kernel": scores}, estimator="straight_through")["kernel"]
    assert hard.dtype == bool and hard.tolist() == [False, False, False, True, True, True]


def test_annealed_scores_start_half_open_and_harden_above_zero(tiny_layout):
    start = masks.init_scores(tiny_layout)
    assert all(np.all(leaf == 0.5) for leaf in jax.tree.leaves(masks.gates(start, 1.0)))
    assert masks.gates({"kernel": jnp.array([-0.1, 0.0, 0.1])})["kernel"].tolist() == [False, False, True]
    # Straight-through scores start open.
    start = masks.init_scores(tiny_layout, "straight_through")
    assert all(np.all(leaf) for leaf in jax.tree.leaves(masks.gates(start, estimator="straight_through")))


def test_an_unknown_estimator_is_refused():
    with pytest.raises(CwpsError, match="estimator 'gumbel': choose"):
        masks.gates({"kernel": jnp.zeros(2)}, 1.0, estimator="gumbel")


def test_scores_are_clipped():
    clipped = masks.clip({"kernel": jnp.array([-9.0, -6.0, 0.3, 6.5])})
    np.testing.assert_array_equal(clipped["kernel"], np.float32([-6.0, -6.0, 0.3, 6.0]))


# The budget


def reference_gates(scores, layout, budget):
    """Highest score first, until the first channel that does not fit; by plain Python."""
    channels = [
        (-score, place, layer, index)
        for place, layer in enumerate(layout.layers)
        for index, score in enumerate(np.ravel(flatten(scores)[layer.path]))
        if score > 0
    ]
    kept = {layer.path: np.zeros(layer.channels, bool) for layer in layout.layers}
    spent, tried = layout.private_parameters, None
    for _, _, layer, index in sorted(channels, key=lambda c: (c[0], c[1], c[3])):
        if spent + layer.channel_parameters > budget * layout.backbone_parameters + 1e-6:
            tried = layer
            break
        spent += layer.channel_parameters
        kept[layer.path][index] = True
    gates = {layer.path: kept[layer.path].reshape(layer.gate_shape) for layer in layout.layers}
    return unflatten(gates), spent, tried


@pytest.mark.parametrize("name", ["tiny", "scanned", "attention"])
@pytest.mark.parametrize("seed", range(6))
def test_hardening_spends_the_budget_on_the_highest_scores(name, seed, tiny_layout):
    layout = tiny_layout if name == "tiny" else zoo.layout(name)
    rng = np.random.default_rng(seed)
    scores = unflatten(
        {layer.path: rng.normal(0.8, 1, layer.gate_shape).astype(np.float32) for layer in layout.layers}
    )
    open_ratio = float(budgets.params_ratio(masks.gates(scores), layout))
    least = layout.private_parameters / layout.backbone_parameters
    budget = least + (open_ratio - least) * rng.uniform(0, 0.95)  # the scores ask for more than it
    gates = budgets.harden(scores, layout, budget)
    wanted, spent, tried = reference_gates(scores, layout, budget)
    assert_same_bits(gates, wanted)
    total = layout.backbone_parameters
    np.testing.assert_allclose(budgets.params_ratio(gates, layout), spent / total, rtol=1e-6)
    assert spent <= budget * total + 1e-6 < spent + tried.channel_parameters


def test_hardening_opens_no_channel_below_the_threshold(tiny_layout):
    scores = constant(tiny_layout, -1.0)
    scores["conv1"]["kernel"] = scores["conv1"]["kernel"].at[..., 2].set(0.05)
    gates = budgets.harden(scores, tiny_layout, 1.0)
    assert gates["conv1"]["kernel"].ravel().tolist() == [False, False, True, False, False, False]
    assert not gates["conv2"]["kernel"].any()
    closed = budgets.harden(scores, tiny_layout, 1.0, estimator="straight_through")
    assert not any(leaf.any() for leaf in jax.tree.leaves(closed))


def test_equal_scores_open_in_the_order_of_the_layers(tiny_layout):
    # conv1 whole (54), then two channels of conv2 (55 each), of 506 parameters with the norm's 12.
    budget = (12 + 54 + 2 * 55 + 54) / 506
    gates = budgets.harden(constant(tiny_layout, 1.0), tiny_layout, budget)
    assert gates["conv1"]["kernel"].all()
    assert gates["conv2"]["kernel"].ravel().tolist() == [True, True] + 6 * [False]


def test_a_full_budget_opens_all_that_is_wanted(tiny_layout, moved):
    scores = moved(constant(tiny_layout, 0.0), 1.0, 0)
    for budget in ((), (1.0,), (1,)):
        assert_same_bits(budgets.harden(scores, tiny_layout, *budget), masks.gates(scores))
    assert_same_bits(
        budgets.harden(constant(tiny_layout, 1.0), tiny_layout, 1.0), masks.all_gates(tiny_layout, True)
    )


def test_hardening_works_under_jit(tiny_layout, moved):
    scores = moved(constant(tiny_layout, 0.5), 1.0, 1)
    jitted = jax.jit(budgets.harden, static_argnames=("layout", "budget"))
    assert_same_bits(jitted(scores, tiny_layout, 0.4), budgets.harden(scores, tiny_layout, 0.4))


def test_a_budget_that_norms_alone_exceed_is_refused_with_the_least(tiny_layout):
    scores = masks.init_scores(tiny_layout)
    least = 12 / 506
    with pytest.raises(CwpsError, match=rf"budget 0\.02: .*cost {least:.4f} "):
        budgets.harden(scores, tiny_layout, 0.02)
    closed = budgets.harden(scores, tiny_layout, least + 1e-9)
    np.testing.assert_allclose(budgets.params_ratio(closed, tiny_layout), least, rtol=1e-6)


@pytest.mark.parametrize("budget", [0.0, -0.1, 1.0001, 30.0, float("nan")])
def test_a_budget_out_of_range_is_refused(budget, tiny_layout):
    with pytest.raises(CwpsError, match="must be above 0 and at most 1"):
        budgets.harden(masks.init_scores(tiny_layout), tiny_layout, budget)


def test_lambda_is_steered_towards_the_budget_and_stays_in_0_to_1():
    steer = lambda *args: [
        float(one) for one in budgets.steer(*args)
    ]  # lambda, and its base for the next step
    rate, gain = 0.1, 2.0
    assert steer(0.1, 0.6, 0.3, rate, gain) == pytest.approx([0.7, 0.13])  # too large: penalise more
    assert steer(0.5, 0.2, 0.3, rate, gain) == pytest.approx([0.3, 0.49])
    assert steer(0.5, 0.3, 0.3, rate, gain) == pytest.approx([0.5, 0.5])
    assert steer(0.99, 1.0, 0.3, rate, gain) == [1.0, 1.0]
    assert steer(0.01, 0.0, 0.3, rate, gain) == [0.0, 0.0]


# Updates


@pytest.mark.parametrize("name", ["conv", "scanned", "transposed_swapped_square", "attention"])
def test_closed_channels_get_no_update_and_all_others_theirs(name):
    layout = zoo.layout(name)
    updates, gates = zoo.random_params(layout, 0), zoo.random_gates(layout, 1)
    held = flatten(masks.hold_closed(updates, gates))
    for layer in layout.layers:
        is_open = np.ravel(flatten(gates)[layer.path])
        for leaf in layer.leaves:
            before = zoo.kernel_channels(layer, leaf, flatten(updates)[leaf])
            after = zoo.kernel_channels(layer, leaf, np.asarray(held[leaf]))
            np.testing.assert_array_equal(after, np.where(is_open[:, None], before, 0.0), err_msg=leaf)
    for path in layout.private_paths:
        np.testing.assert_array_equal(held[path], flatten(updates)[path])


def test_a_soft_gate_that_is_not_zero_holds_nothing():
    updates = {"kernel": jnp.ones((2, 3))}
    held = masks.hold_closed(updates, {"kernel": jnp.array([[0.0, 1e-6, 1.0]])})
    np.testing.assert_array_equal(held["kernel"], [[0, 1, 1], [0, 1, 1]])


def test_gates_follow_the_module_not_the_shape():
    # Two modules of one shape: each gate governs its own.
    model = nn.Sequential([nn.Dense(3), nn.Dense(3)])
    params = model.init(jax.random.key(0), jnp.ones((1, 3)))["params"]
    gates = {
        "layers_0": {"kernel": jnp.array([[True, False, True]])},
        "layers_1": {"kernel": jnp.zeros((1, 3), bool)},
    }
    ones = jax.tree.map(jnp.ones_like, params)
    mixed = mix(jax.tree.map(jnp.zeros_like, params), ones, gates)
    assert mixed["layers_0"]["bias"].tolist() == [1, 0, 1]
    assert mixed["layers_1"]["kernel"].sum() == 0
