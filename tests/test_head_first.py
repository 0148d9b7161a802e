"""The head's own stage, and channels that are chosen by how far they have moved."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods_shared import CONFIG, LEARNED, effective, run, task, tiny, vit

import cwps_jax as cwps
from cwps_jax.core import budgets
from cwps_jax.core.trees import flatten, select
from cwps_jax.errors import CwpsError
from cwps_jax.methods.head_first import stages_of

EPOCHS = dataclasses.replace(CONFIG, epochs=6, head_share=0.34)


@pytest.mark.parametrize("name", ["finetune", "channels", "taps", "bitfit"])
def test_the_head_is_trained_first_and_goes_on_from_there(name):
    where, method = tiny(), LEARNED[name]
    moment = where.moment(EPOCHS)
    head, first, *_ = stages_of(method, where.trainer.network, EPOCHS)
    assert (head.name, head.epochs, head.inference) == ("head", 2, True)
    begun = head.begin(moment)
    assert {*flatten(begun.own["params"])} == {*where.layout.head_paths}
    moved = {"params": jax.tree.map(lambda leaf: leaf + 1, begun.own["params"])}
    params = flatten(effective(head, moved, begun.frozen).params)
    start = flatten(where.variables["params"])
    for path, leaf in params.items():
        np.testing.assert_array_equal(leaf, start[path] + (path in where.layout.head_paths))
    own = first.begin(dataclasses.replace(moment, own=moved)).own
    chex.assert_trees_all_equal(select(own["params"], where.layout.head_paths), moved["params"])
    seen = run(where, method, epochs=6, head_share=0.34)[1]
    assert [one.stage for one in seen][:3] == ["head", "head", first.name] and len(seen) == 6


def test_a_method_that_adds_to_the_model_has_no_head_first():
    with pytest.raises(CwpsError, match="config.head_share = 0.34: l2p adds to the model"):
        run(vit(), LEARNED["l2p"], epochs=6, head_share=0.34)


def test_the_rest_of_the_epochs_must_be_enough_for_the_method():
    with pytest.raises(CwpsError, match="cwps needs at least 3"):
        run(tiny(), LEARNED["channels"], epochs=4, head_share=0.5)


def test_channels_that_moved_most_for_their_price_are_opened():
    where = tiny()
    seen = []
    method = cwps.methods.Cwps(selection="moved", warm_up_share=0.25)
    config = dataclasses.replace(CONFIG, method=method, epochs=4, budget=0.6)
    (warm_up, hard) = method.stages(where.trainer.network, config)
    assert [(one.name, one.epochs) for one in (warm_up, hard)] == [("warm-up", 1), ("hard", 3)]
    child = jax.tree.map(lambda leaf: np.asarray(leaf), where.variables["params"])
    rng = np.random.default_rng(0)
    child = jax.tree.map(lambda leaf: leaf + rng.normal(size=leaf.shape).astype(np.float32), child)
    begun = hard.begin(dataclasses.replace(where.moment(config), own={"params": child}))
    gates = flatten(begun.frozen["gates"])
    start, leaves, costs = flatten(where.variables["params"]), flatten(child), []
    for layer in where.layout.layers:
        distance = sum(
            np.square(leaves[leaf] - start[leaf]).reshape(-1, layer.channels).sum(axis=0)
            for leaf in layer.leaves
        )
        costs += [
            (-one / layer.channel_parameters, layer.channel_parameters, gate)
            for one, gate in zip(distance, np.ravel(gates[layer.path]), strict=True)
        ]
    room = int(0.6 * where.layout.backbone_parameters) - where.layout.private_parameters
    for _, cost, gate in sorted(costs, key=lambda one: one[0]):
        room -= cost
        seen.append(bool(gate) == (room >= 0))
    assert all(seen)
    trained, progress = run(where, method, epochs=4)
    assert [one.stage for one in progress] == ["warm-up", "hard", "hard", "hard"]
    assert float(budgets.params_ratio(trained.finished.gates, where.layout)) <= 0.6
    assert trained.finished.moment.found["sources"].keys() == {one.path for one in where.layout.layers}


def test_channels_whose_bits_the_byte_budget_sets_need_no_soft_stage():
    stages = lambda method, **options: [
        stage.name
        for stage in method.stages(
            tiny().trainer.network, dataclasses.replace(CONFIG, epochs=8, budget=1.0, **options)
        )
    ]
    by_bytes = {"row_bits": 0, "byte_budget": 0.1, "rounded_share": 0.25}
    every, layers = cwps.methods.Cwps(), cwps.methods.Cwps(granularity="layer")
    assert stages(every, **by_bytes) == ["warm-up", "hard", "rounded", "rounded"]
    assert "soft" in stages(layers, **by_bytes)
    assert "soft" in stages(every, row_bits=2, byte_budget=0.1)
    assert "soft" in stages(cwps.methods.Cwps(selection="learned"), **by_bytes)


def test_what_did_not_move_stays_closed():
    where = tiny()
    prices = budgets.parameter_prices(where.layout)
    params = where.variables["params"]
    scores = budgets.moved(params, params, where.layout, prices)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(scores))
    assert not any(jnp.any(gate) for gate in jax.tree.leaves(budgets.harden(scores, where.layout, 0.9)))


def test_whole_layers_are_not_chosen_by_how_far_they_moved():
    with pytest.raises(CwpsError, match="set granularity to 'channel'"):
        cwps.methods.Cwps(selection="moved", granularity="layer")


def test_a_task_is_learned_with_both(tmp_path):
    where = tiny()
    pool = where.new_pool(tmp_path / "pool")
    method = cwps.methods.Cwps(selection="moved")
    config = dataclasses.replace(EPOCHS, method=method, row_bits=2, byte_budget=0.08, budget=1.0)
    learned = cwps.learn_task(pool, "a", where.model, task(where.size), config=config, trainer=where.trainer)
    assert pool.count(learned.name).byte_ratio <= 0.08
    chex.assert_trees_all_equal(cwps.Pool.open(pool.folder).effective("a"), learned.variables)
