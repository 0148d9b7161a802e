"""CPMS against planted sources and against an independent search in float64 NumPy."""

import jax
import numpy as np
import pytest
import zoo
from searched import LAYOUT, OPTIONS, assert_found, find, from_rows, names, random_params, reference, rows

from cwps_jax.errors import CwpsError
from cwps_jax.search.composite import Search


def assert_made_of(parent, found, models):
    """The parent is made of the sources' rows, to the bit."""
    for layer in LAYOUT.layers:
        model, channel = found[layer.path]
        ours = zoo.rows_of(layer, parent)
        for index, (k, other) in enumerate(zip(model, channel, strict=True)):
            assert ours[index].tobytes() == zoo.rows_of(layer, models[k])[other].tobytes()


@pytest.mark.parametrize("search", OPTIONS, ids=names)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_agrees_with_a_search_by_loops(search, seed):
    rng = np.random.default_rng(seed)
    start = random_params(rng)
    models = [start] + [random_params(rng, start, 0.3) for _ in range(3)]
    # Every channel of the child has moved towards a channel of some model, more or less far.
    target = {path: np.copy(rows_) for path, rows_ in rows(start).items()}
    for path, own in target.items():
        for channel in range(len(own)):
            toward = rows(models[rng.integers(4)])[path]
            pick = rng.integers(len(own)) if search.candidates == "any" else channel
            own[channel] += rng.uniform(0.3, 1.0) * (toward[pick] - own[channel])
    child = random_params(rng, from_rows(target), 0.15)
    parent, found = find(child, models, search)
    wanted = reference(child, models, search)
    assert_found(found, wanted)
    if search.granularity == "channel":
        assert len({k for model, _ in wanted.values() for k in model}) > 2  # it is not always the same one
    assert_made_of(parent, found, models)


@pytest.mark.parametrize("search", OPTIONS, ids=names)
def test_a_planted_source_is_found(search):
    rng = np.random.default_rng(3)
    start = random_params(rng)
    models = [start] + [random_params(rng, start, 0.3) for _ in range(3)]
    planted, child = {}, {}
    for path, first in rows(start).items():
        model = np.arange(len(first)) % 3 + 1 if search.granularity == "channel" else np.full(len(first), 2)
        channel = np.arange(len(first))
        if search.candidates == "any":
            channel = channel[::-1].copy()
        planted[path] = model, channel
        child[path] = np.stack([rows(models[k])[path][c] for k, c in zip(model, channel, strict=True)])
    _, found = find(from_rows(child), models, search)
    assert_found(found, planted)


@pytest.mark.parametrize("search", OPTIONS, ids=names)
def test_ties_go_to_the_oldest_model(search):
    rng = np.random.default_rng(4)
    start, one = random_params(rng), random_params(rng)
    _, found = find(one, [start, one, one, one], search)
    assert all(np.all(model == 1) for model, _ in found.values())
    # Three copies of the pre-trained model, whatever the child: the first one.
    _, found = find(one, [start, start, start], search)
    assert all(np.all(model == 0) for model, _ in found.values())


@pytest.mark.parametrize("search", OPTIONS, ids=names)
def test_padding_is_never_chosen_though_it_is_nearest(search):
    # Rows are padded with zeros: nothing is nearer to a child of next to nothing.
    rng = np.random.default_rng(5)
    start, child = random_params(rng), random_params(rng, scale=1e-3)
    for models in ([start], [start, random_params(rng, start, 0.3)]):
        _, found = find(child, models, search)
        assert_found(found, reference(child, models, search))


@pytest.mark.parametrize("search", [Search("l2"), Search("l2", "layer")], ids=names)
def test_what_rounding_leaves_open_is_compared_weight_by_weight(search):
    rng = np.random.default_rng(11)
    start = random_params(rng)
    far = random_params(rng, start, 1.0)
    models = [start] + [random_params(rng, far, 1e-5) for _ in range(6)]
    child = models[4]
    _, found = find(child, models, search)
    assert all(np.all(model == 4) for model, _ in found.values())
    # Products alone miss some of them.
    missed = 0
    for path, own in rows(child).items():
        changes = [np.float32(rows(model)[path] - rows(start)[path]) for model in models]
        own = np.float32(own - rows(start)[path])
        cost = [np.sum(one * one, axis=1) - 2 * np.einsum("cs,cs->c", one, own) for one in changes]
        missed += np.count_nonzero(np.argmin(cost, axis=0) != 4)
    assert missed


def test_agreement_by_chance_goes_to_the_pre_trained_model():
    rng = np.random.default_rng(7)
    start = random_params(rng)
    models = [start] + [random_params(rng, start, 0.3) for _ in range(4)]
    child = random_params(rng, start, 0.3)  # moved on its own
    _, found = find(child, models, Search("change"))
    assert all(np.all(model == 0) for model, _ in found.values())
    # Without the threshold a chance agreement is as good as any.
    _, found = find(child, models, Search("change", z=0.0))
    assert any(np.any(model != 0) for model, _ in found.values())


def test_a_channel_that_did_not_change_is_no_source_and_needs_none():
    rng = np.random.default_rng(8)
    start = random_params(rng)
    model = random_params(rng, start, 0.3)
    child = {path: leaf.copy() for path, leaf in model.items()}  # agrees with the model everywhere ...
    model["a/kernel"][:, 1], model["a/bias"][1] = start["a/kernel"][:, 1], start["a/bias"][1]
    child["a/kernel"][:, 4], child["a/bias"][4] = start["a/kernel"][:, 4], start["a/bias"][4]
    _, found = find(child, [start, model], Search("change"))
    # ... but where the model's channel, or its own, is as it was.
    np.testing.assert_array_equal(found["a/kernel"][0], [1, 0, 1, 1, 0, 1])
    assert np.all(found["b/kernel"][0] == 1)


@pytest.mark.parametrize("search", OPTIONS, ids=names)
@pytest.mark.parametrize("move", [1e-3, 1e-4])
def test_a_small_move_finds_its_model_among_nearly_equal_ones(search, move):
    # Everything has moved by a thousandth of the weights, or less: what float32 leaves of a product of raw
    # weights, or of one minus a cosine, cannot tell such models apart.
    for seed in range(3):
        rng = np.random.default_rng(seed)
        start = random_params(rng)
        models = [start] + [random_params(rng, start, move) for _ in range(3)]
        child = random_params(rng, models[2], 0.3 * move)
        _, found = find(child, models, search)
        assert_found(found, reference(child, models, search))
        assert np.mean(np.concatenate([model for model, _ in found.values()]) == 2) > 0.9


@pytest.mark.parametrize("granularity", ["channel", "layer", "model"])
def test_sources_that_are_drawn_are_of_every_model_and_do_not_depend_on_the_child(granularity):
    rng = np.random.default_rng(12)
    models = [random_params(rng) for _ in range(3)]
    drawn = [
        find(child, models, Search(granularity=granularity, candidates="random", seed=seed))
        for child, seed in ((models[0], 0), (random_params(rng), 0), (models[0], 1), (models[0], 2))
    ]
    picked = [np.concatenate([model for model, _ in found.values()]) for _, found in drawn]
    np.testing.assert_array_equal(picked[0], picked[1])
    assert granularity == "model" or set(np.concatenate(picked)) == {0, 1, 2}
    for parent, found in drawn:
        for model, channel in found.values():
            np.testing.assert_array_equal(channel, np.arange(len(channel)))
            assert granularity == "channel" or len(set(model)) == 1
        whole = np.concatenate([model for model, _ in found.values()])
        assert granularity != "model" or len(set(whole)) == 1
        assert_made_of(parent, found, models)


def test_without_a_search_the_parent_is_the_pretrained_model():
    rng = np.random.default_rng(13)
    models = [random_params(rng) for _ in range(3)]
    parent, found = find(models[2], models, Search(candidates="pretrained"))
    assert all(not np.any(model) for model, _ in found.values())
    assert_made_of(parent, found, models)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(distance="l1"),
        dict(granularity="weight"),
        dict(candidates="all"),
        dict(granularity="layer", candidates="any"),
        dict(granularity="model", candidates="any"),
    ],
)
def test_a_search_that_does_not_exist_is_refused(wrong):
    with pytest.raises(CwpsError, match="search"):
        Search(**wrong)


def test_a_search_under_jit_is_refused():
    start = random_params(np.random.default_rng(0))
    with pytest.raises(CwpsError, match="outside of jit"):
        jax.jit(lambda child: find(child, [start], Search())[0])(start)
