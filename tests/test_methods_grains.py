"""Grains: layers, channels and single weights share gates, budgets and the pool."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods_shared import CONFIG, LEARNED, learned, noisy, task, tiny, vit

import cwps_jax as cwps
from cwps_jax.core import budgets, masks
from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.methods import Ba2, Cwps, Finetune
from cwps_jax.methods.channels import unpack_bits

GRAINS = ("channel", "layer", "weight")
BUDGETS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9)


def scores_of(layout, grain, *, positive=True, seed=0):
    scores = noisy(masks.init_scores(layout, grain=grain), 1.0, seed)
    return jax.tree.map(np.abs, scores) if positive else scores


def units(layout, gates):
    """Returns {path of a leaf: (how many parameters are open, how many one of its gates governs)}."""
    flat, found = flatten(gates), {}
    for layer in layout.layers:
        sizes = dict(zip(layer.leaves, map(math.prod, layer.shapes), strict=True))
        if len(layer.leaves) > 1 and all(leaf in flat for leaf in layer.leaves):
            for leaf, size in sizes.items():
                assert flat[leaf].size == size
                found[leaf] = int(flat[leaf].sum()), 1
        elif flat[layer.path].size == sizes[layer.path]:
            found[layer.path] = int(flat[layer.path].sum()), 1
        else:
            one = sum(sizes.values()) // flat[layer.path].size
            found[layer.path] = int(flat[layer.path].sum()) * one, one
    return found


def ratio_of(layout, gates):
    opened = sum(number for number, _ in units(layout, gates).values())
    return (opened + layout.private_parameters) / layout.backbone_parameters


@pytest.mark.parametrize("estimator", ["annealed", "straight_through"])
def test_layers_and_channels_agree_where_all_channels_of_a_layer_have_one_score(estimator):
    layout = tiny().layout
    by_layer = {path: np.full((1,) * 4, score, np.float32)
                for path, score in zip(layout_paths(layout), (0.4, -0.2), strict=True)}  # fmt: skip
    by_channel = {one.path: np.broadcast_to(by_layer[one.path], one.gate_shape) for one in layout.layers}
    layers, channels = unflatten(by_layer), unflatten(by_channel)
    child, parent = noisy(tiny().variables["params"], 1.0, 1), noisy(tiny().variables["params"], 1.0, 2)

    def mixed(scores, temperature):
        gates = masks.gates(scores, temperature, estimator=estimator)
        return masks.spread(gates, layout), cwps.mix(parent, child, masks.spread(gates, layout))

    for temperature in (1.0, 30.0, None):
        chex.assert_trees_all_equal(mixed(layers, temperature), mixed(channels, temperature))
    hard = [
        masks.spread(budgets.harden(one, layout, estimator=estimator), layout) for one in (layers, channels)
    ]
    chex.assert_trees_all_equal(*hard)
    assert {path: bool(gate.all()) for path, gate in flatten(hard[0]).items()} == dict(
        zip(layout_paths(layout), (True, False), strict=True)
    )
    ratios = [
        budgets.params_ratio(masks.gates(one, estimator=estimator), layout) for one in (layers, channels)
    ]
    assert ratios[0] == ratios[1] == pytest.approx((54 + 12) / 506)
    # The score of a layer gets the sum of what its channels get.
    pull = lambda scores: masks.gates(scores, 2.0, estimator=estimator)
    weight = unflatten(
        {path: np.random.default_rng(0).random(gate.shape) for path, gate in by_channel.items()}
    )
    total = lambda scores: sum(
        jnp.sum(gate * there)
        for gate, there in zip(
            jax.tree.leaves(masks.spread(pull(scores), layout)), jax.tree.leaves(weight), strict=True
        )
    )
    of_layers, of_channels = (flatten(jax.grad(total)(one)) for one in (layers, channels))
    for path in by_layer:
        np.testing.assert_allclose(np.sum(of_layers[path]), np.sum(of_channels[path]), rtol=1e-5)


def layout_paths(layout):
    return [layer.path for layer in layout.layers]


@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("where", [tiny, vit])
def test_hardened_gates_keep_every_budget_and_leave_less_than_one_unit_of_it(where, grain):
    layout = where().layout
    scores = scores_of(layout, grain)
    flat = flatten(scores)
    for budget in BUDGETS:
        if budget * layout.backbone_parameters < layout.private_parameters:
            continue
        gates = budgets.harden(scores, layout, budget)
        ratio = ratio_of(layout, gates)
        assert ratio <= budget + 1e-9
        assert float(budgets.params_ratio(gates, layout)) == pytest.approx(ratio, abs=1e-6)
        # The next one in order, the highest score that is closed, would not have fitted.
        hard, costs = flatten(gates), {path: one for path, (_, one) in units(layout, gates).items()}
        closed = {path: np.max(np.where(hard[path], -np.inf, flat[path])) for path in flat}
        following = max(closed, key=closed.get)
        assert ratio + costs[following] / layout.backbone_parameters > budget
        assert min(flat[path][hard[path]].min(initial=np.inf) for path in flat) >= closed[following]


@pytest.mark.parametrize("grain", GRAINS)
def test_a_budget_that_scores_do_not_ask_for_changes_nothing(grain):
    layout = tiny().layout
    scores = scores_of(layout, grain, positive=False)
    wanted = masks.gates(scores)
    assert 0 < ratio_of(layout, wanted) < 0.98
    chex.assert_trees_all_equal(budgets.harden(scores, layout, 0.98), wanted)


@pytest.mark.parametrize("name", ["channels", "layers", "weights"])
def test_a_learned_task_keeps_its_budget_at_every_grain(name):
    one = learned(False).tasks[name]
    private = tiny().layout.private_parameters / tiny().layout.backbone_parameters
    assert private < one.params_ratio <= CONFIG.budget


@pytest.mark.parametrize("grain", GRAINS)
@pytest.mark.parametrize("budget", [0.15, 0.4])
def test_a_task_keeps_smaller_budgets_too(grain, budget, tmp_path):
    pool = tiny().new_pool(tmp_path / "pool")
    config = dataclasses.replace(CONFIG, method=Cwps(granularity=grain), budget=budget, epochs=3)
    learn = cwps.learn_task(pool, "task", tiny().model, task(), config=config, trainer=tiny().trainer)
    assert learn.params_ratio <= budget


def open_share(layout, stored):
    """Returns the share of open switches, weighted by the weights behind them."""
    opened = total = 0
    for layer in layout.layers:
        if layer.path in stored:
            channels = layer.shapes[0][-2]
            weights = math.prod(layer.shapes[0]) // channels
            opened += weights * int(unpack_bits(np.asarray(stored[layer.path]), channels).sum())
            total += weights * channels
    return opened / total


@pytest.mark.parametrize("budget", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("favoured", ["patch_embedding", "dense1", "dense2"])
def test_stored_switches_of_ba2_keep_the_budget_whichever_layers_are_favoured(budget, favoured):
    layout, method = vit().layout, Ba2(budget=budget)
    scores = flatten(noisy(method.added(vit().moment())["switches"], 0.1))
    scores = {path: np.abs(score) + 0.01 + (favoured in path) for path, score in scores.items()}
    found = flatten(method.packed(layout, {"switches": unflatten(scores)})["switches"])
    assert found.keys() == scores.keys()
    share = open_share(layout, found)
    dearest = max(math.prod(one.shapes[0]) // one.shapes[0][-2] for one in layout.layers if one.path in found)
    total = sum(math.prod(one.shapes[0]) for one in layout.layers if one.path in found)
    assert budget - dearest / total < share <= budget


@pytest.mark.parametrize("budget", [0.2, 0.5])
def test_equal_scores_of_ba2_are_not_all_closed_by_the_budget(budget):
    layout, method = tiny().layout, Ba2(budget=budget)
    found = method.packed(layout, {"switches": method.added(tiny().moment())["switches"]})["switches"]
    assert budget - 72 / 486 < open_share(layout, flatten(found)) <= budget


def test_switches_of_ba2_below_the_threshold_stay_closed_within_any_budget():
    layout, method = tiny().layout, Ba2(budget=1.0)
    scores = {
        "conv1": {"kernel": np.float32([[0.02]])},
        "conv2": {"kernel": np.float32([[0.1, -1, 0.004, 0.006, 0, 1]]).T},
    }
    found = flatten(method.packed(layout, {"switches": scores})["switches"])
    opened = {path: unpack_bits(bits, size) for (path, bits), size in zip(found.items(), (1, 6), strict=True)}
    assert opened["conv1/kernel"].tolist() == [True]
    assert opened["conv2/kernel"].tolist() == [True, False, False, True, False, True]


def test_a_learned_task_of_ba2_keeps_its_budget():
    pool = learned(False).pool
    own = pool._trees.own(pool.version("ba2"))
    # The first convolution sees grey images: without its only input channel the network would be dead.
    stored = {path.removeprefix("switches/"): own[path] for path in own if path.startswith("switches/")}
    assert stored.keys() == {"conv2/kernel"}
    budget = LEARNED["ba2"].budget  # its scores ask for more, being still above the threshold
    assert budget - 72 / 432 < open_share(tiny().layout, stored) <= budget


def test_a_task_of_single_weights_borrows_stored_channels_and_lends_none(tmp_path):
    where, pool = tiny(), tiny().new_pool(tmp_path / "pool")

    def learn(name, method):
        config = dataclasses.replace(CONFIG, method=method)
        return cwps.learn_task(pool, name, where.model, task(), config=config, trainer=where.trainer)

    learn("whole", Finetune())
    one = learn("weights", Cwps(granularity="weight"))
    own = pool._trees.own(pool.version("weights"))
    owners = np.concatenate([own[f"owner/{path}"].ravel() for path in layout_paths(where.layout)])
    assert pool.version("whole").id in owners
    assert one.relation == {} and not pool.shares_channels("weights")
    again = cwps.Pool.open(pool.folder)
    chex.assert_trees_all_equal(again.effective("weights"), dict(one.variables))
    # Some of its weights are its own, the others are those of the channels that it borrows.
    leaves, lent = flatten(one.variables["params"]), flatten(pool.effective("whole")["params"])
    start = flatten(where.variables["params"])
    for layer in where.layout.layers:
        theirs = own[f"owner/{layer.path}"] == pool.version("whole").id
        parent = np.where(theirs, lent[layer.path], start[layer.path])
        mine = unpack_bits(own[f"masks/{layer.path}"], parent.size).reshape(parent.shape)
        np.testing.assert_array_equal(leaves[layer.path][~mine], parent[~mine])
    assert again.pooled().names == ("pretrained", "whole")
    with pytest.raises(cwps.CwpsError, match="weights@1 is stored by cwps, not as channels with owners"):
        again.ownership("weights")
    with pytest.raises(cwps.CwpsError, match="whole@1 cannot be removed: weights@1 is restored from it"):
        again.remove("whole")
    later = learn("channels", Cwps())
    assert set(later.relation) <= {"pretrained", "whole", "channels"}
