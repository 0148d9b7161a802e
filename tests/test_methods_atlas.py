"""aTLAS: a planted combination of two stored tasks' changes is found again."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods_shared import CONFIG as SHORT
from methods_shared import files_hash, images_of, noisy, task, tiny

import cwps_jax as cwps
from cwps_jax.core.trees import flatten, unflatten, unite
from cwps_jax.methods import Atlas, Finetune
from cwps_jax.methods.method import Stored

# The coefficients alone are trained, the head stands.
CONFIG = dataclasses.replace(SHORT, learning_rate=0.0, momentum=0.0, epochs=60, batch_size=64)
ATLAS = Atlas(weight_decay=0.0, learning_rate=0.1, head_share=0.02)


class Plain(nn.Module):
    """Three layers without norms, which would take the scales of their layers out again."""

    @nn.compact
    def __call__(self, images, train: bool = False):
        x = nn.tanh(nn.Conv(6, (3, 3), name="conv1")(images))
        x = nn.tanh(nn.Conv(8, (3, 3), strides=2, name="conv2")(x)).reshape(len(images), -1)
        return nn.Dense(24, name="head")(nn.tanh(nn.Dense(32, name="dense")(x)))


def squared_error(outputs, batch):
    return jnp.mean((outputs - batch["planted"]) ** 2, axis=-1)


def store(pool, name, params):
    """Stores a whole network of a task, as fine-tuning would."""
    leaves = flatten(params)
    masks = {layer.path: np.asarray(1, np.uint8) for layer in pool.layout.layers}
    rows = {}
    for layer in pool.layout.layers:
        for leaf in layer.leaves:
            rows[leaf] = np.reshape(leaves[leaf], (-1, layer.channels)).T
    empty = unflatten({layer.path: np.zeros(0, np.uint8) for layer in pool.layout.layers})
    head = unflatten({path: leaves[path] for path in pool.layout.head_paths})
    own = {"masks": unflatten(masks), "owner": empty, "row": empty, "params": head, "other": {}}
    pool.add_stored(name, Finetune(), Stored(own, rows), {"classes": 24})
    chex.assert_trees_all_equal(pool.effective(name)["params"], dict(params))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A pool of two tasks, the coefficients that were planted for each leaf, and what training found."""
    model, images = Plain(), images_of(256, 3)
    data = cwps.TaskData({"image": images, "planted": np.zeros((256, 24), np.float32)},
                         {"image": images[:16], "planted": np.zeros((16, 24), np.float32)},
                         {"image": images[:16], "planted": np.zeros((16, 24), np.float32)}, None)  # fmt: skip
    trainer = cwps.make_trainer(model, data, loss=squared_error, metric=squared_error, config=CONFIG)
    variables = trainer.new_variables(0)
    pool = cwps.Pool.create(tmp_path_factory.mktemp("atlas") / "pool", variables, trainer.layout)
    start = {**variables, "params": unite(variables["params"], trainer.new_head(CONFIG.seed)["params"])}
    for seed, name in enumerate(("one", "two"), 1):
        store(pool, name, noisy(start["params"], 0.1, seed))
    rng, expected, params = np.random.default_rng(0), {}, flatten(start["params"])
    changes = [flatten(pool.effective(name)["params"]) for name in ("one", "two")]
    for path in trainer.layout.backbone_shapes:
        expected[path] = rng.uniform(-1, 1.5, 2).astype(np.float32)
        change = sum(c * (one[path] - params[path]) for c, one in zip(expected[path], changes, strict=True))
        params[path] = params[path] + change
    outputs = np.asarray(jax.jit(model.apply)({"params": unflatten(params)}, images))
    split = {"image": images, "planted": outputs}
    config = dataclasses.replace(CONFIG, method=ATLAS)
    trained = trainer.train(start, split, config, pool.pooled(method="atlas"))
    return pool, start, expected, unflatten(params), trained


def test_a_planted_combination_of_two_tasks_is_found_again(planted):
    _, _, expected, params, trained = planted
    found = flatten(trained.finished.moment.own["coefficients"])
    assert found.keys() == expected.keys()
    assert max(np.abs(leaf).max() for leaf in expected.values()) > 0.8
    for path, coefficients in expected.items():
        np.testing.assert_allclose(found[path], coefficients, atol=0.05, err_msg=path)
    chex.assert_trees_all_close(dict(trained.params), params, atol=0.02)


def test_a_head_at_a_rate_of_zero_stays_where_it_was(planted):
    _, start, _, _, trained = planted
    chex.assert_trees_all_equal(trained.params["head"], start["params"]["head"])


def test_a_task_that_is_combined_cannot_be_removed(planted):
    pool, _, _, params, trained = planted
    pool.add_stored("sum", ATLAS, ATLAS.store(trained.finished), {"classes": 24})
    chex.assert_trees_all_close(pool.effective("sum")["params"], params, atol=0.02)
    before = files_hash(pool.folder)
    for name in ("one", "two"):
        with pytest.raises(
            cwps.CwpsError, match=rf"{name}@1 cannot be removed: sum@1 is restored from it; remove that first"
        ):
            pool.remove(name)
    assert files_hash(pool.folder) == before
    pool.remove("sum")
    pool.remove("two")
    assert pool.tasks == ("one",)


def test_a_combination_stands_when_a_task_is_learned_anew_or_later_ones_come(tmp_path):
    where = tiny()
    pool = where.new_pool(tmp_path / "pool")
    config = dataclasses.replace(SHORT, epochs=3)

    def learn(name, method, turned=False):
        told = dataclasses.replace(config, method=method)
        data = task(turned=turned)
        return cwps.learn_task(pool, name, where.model, data, config=told, trainer=where.trainer)

    learn("one", Finetune())
    first = learn("sum", Atlas(weight_decay=0.0))
    learn("two", Finetune(), turned=True)
    # Two tasks and the first combination itself: a task's changes are those of its whole network.
    second = learn("of_all", Atlas())
    again = cwps.Pool.open(pool.folder)
    for one, count in ((first, 1), (second, 3)):
        chex.assert_trees_all_equal(again.effective(one.name), dict(one.variables))
        assert pool._trees.own(pool.version(one.name))["coefficients/norm/scale"].shape == (count,)
    assert len(pool.version("of_all").uses) == 3
    with pytest.raises(cwps.CwpsError, match="one@1 cannot be removed: sum@1, of_all@1 are restored from it"):
        pool.remove("one@1")
