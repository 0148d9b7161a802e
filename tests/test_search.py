"""CPMS against planted sources and against an independent search in float64 NumPy."""

import itertools

import jax
import numpy as np
import pytest
import zoo

from cwps_jax.core.channels import layout_from_axes
from cwps_jax.core.search import Search, composite
from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.errors import CwpsError

PADDED = 5  # models on the leading axis; how many are real is traced
OPTIONS = [
    Search(distance, granularity, candidates)
    for distance, (granularity, candidates) in itertools.product(
        ("l2", "cosine", "change"), (("channel", "aligned"), ("layer", "aligned"), ("channel", "any"))
    )
]
names = lambda search: f"{search.distance}-{search.granularity}-{search.candidates}"

SHAPES = {"a": {"kernel": (16, 6), "bias": (6,)}, "b": {"kernel": (3, 3, 2, 5)}, "c": {"kernel": (18, 2, 3)}}
AXES = {"a/kernel": (-1,), "a/bias": (-1,), "b/kernel": (-1,), "c/kernel": (-2, -1)}
LAYOUT = layout_from_axes(unflatten({path: np.zeros(shape) for path, shape in flatten(SHAPES).items()}), AXES)

traced = []


def counted(layout, child, models, count, search):
    traced.append(search)
    return composite(layout, child, models, count, search)


searched = jax.jit(counted, static_argnums=(0, 4))


def find(child, models, search):
    """Searches under jit with padding; returns the parent and {path: (models, channels)}."""
    stacked = {
        path: np.stack([model[path] for model in models] + [child[path]] * (PADDED - len(models)))
        for path in AXES
    }
    parent, sources = searched(LAYOUT, unflatten(child), stacked, len(models), search)
    found = {path: (np.asarray(one.model), np.asarray(one.channel)) for path, one in sources.items()}
    return flatten(parent), found


def rows(params):
    """{path of a kernel: (channels, size)} by plain NumPy, float64."""
    return {layer.path: zoo.rows_of(layer, params).astype(np.float64) for layer in LAYOUT.layers}


def from_rows(rows):
    """Inverse of `rows`, float32."""
    a = rows["a/kernel"]
    params = {
        "a/kernel": a[:, :-1].T,
        "a/bias": a[:, -1],
        "b/kernel": rows["b/kernel"].reshape(5, 3, 3, 2).transpose(1, 2, 3, 0),
        "c/kernel": rows["c/kernel"].reshape(2, 3, 18).transpose(2, 0, 1),
    }
    return {path: np.ascontiguousarray(leaf, np.float32) for path, leaf in params.items()}


def random_params(rng, around=None, scale=1.0):
    around = around or {path: 0.0 for path in AXES}
    shapes = flatten(SHAPES)
    noise = {path: rng.standard_normal(shapes[path]) for path in AXES}
    return {path: np.float32(around[path] + scale * noise[path]) for path in AXES}


def cosine(a, b):
    norm = np.linalg.norm(a) * np.linalg.norm(b)
    return a @ b / norm if norm else 0.0


def reference(child, models, search):
    """The sources, by loops over channels, models and candidates."""
    child, models = rows(child), [rows(model) for model in models]
    found = {}
    for path, own in child.items():
        if search.granularity == "layer":
            cost = [layer_cost(own, model[path], models[0][path], search) for model in models]
            found[path] = np.full(len(own), np.argmin(cost)), np.arange(len(own))
            continue
        picked = []
        for channel, row in enumerate(own):
            best = None
            for k, model in enumerate(models):
                for other in range(len(own)) if search.candidates == "any" else [channel]:
                    cost = row_cost(row, model[path][other], models[0][path][channel], search)
                    if best is None or cost < best[0]:
                        best = cost, k, other
            picked.append(best[1:])
        found[path] = tuple(np.array(picked).T)
    return found


def row_cost(row, other, start, search):
    if search.distance == "l2":
        return np.sum((row - other) ** 2)
    if search.distance == "cosine":
        return 1 - cosine(row, other)
    agreement = cosine(row - start, other - start) * np.sqrt(row.size)
    return -agreement if agreement > search.z else (0.0 if np.all(other == start) else 1.0)


def layer_cost(own, model, start, search):
    if search.distance == "change":
        return row_cost(own.ravel(), model.ravel(), start.ravel(), search)
    return sum(row_cost(a, b, s, search) for a, b, s in zip(own, model, start, strict=True))


def assert_found(found, wanted):
    assert found.keys() == wanted.keys()
    for path, (model, channel) in wanted.items():
        np.testing.assert_array_equal(found[path][0], model, err_msg=path)
        np.testing.assert_array_equal(found[path][1], channel, err_msg=path)


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
    # The parent is made of the sources' rows, to the bit.
    for layer in LAYOUT.layers:
        model, channel = found[layer.path]
        ours = zoo.rows_of(layer, parent)
        for index, (k, other) in enumerate(zip(model, channel, strict=True)):
            assert ours[index].tobytes() == zoo.rows_of(layer, models[k])[other].tobytes()


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
    # `find` pads with the child itself: distance zero.
    rng = np.random.default_rng(5)
    start = random_params(rng)
    child = random_params(rng, start, 0.3)
    for models in ([start], [start, random_params(rng, start, 0.3)]):
        _, found = find(child, models, search)
        assert all(np.all(model < len(models)) for model, _ in found.values())


def test_a_growing_pool_does_not_compile_again():
    rng = np.random.default_rng(6)
    start = random_params(rng)
    search = OPTIONS[0]
    find(start, [start], search)
    before = len(traced)
    find(start, [start] * 3, search)
    assert len(traced) == before


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


@pytest.mark.parametrize(
    "wrong",
    [
        dict(distance="l1"),
        dict(granularity="weight"),
        dict(candidates="all"),
        dict(granularity="layer", candidates="any"),
    ],
)
def test_a_search_that_does_not_exist_is_refused(wrong):
    with pytest.raises(CwpsError, match="search"):
        Search(**wrong)
