"""CPMS against planted sources and against an independent search in float64 NumPy."""

import itertools

import jax
import numpy as np
import pytest
import zoo

from cwps_jax.core import candidates, nearest
from cwps_jax.core.channels import layout_from_axes
from cwps_jax.core.recent import Recent
from cwps_jax.core.search import Search, composite
from cwps_jax.core.stored import StoredModels, model_rows, whole_models
from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.errors import CwpsError

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


def find(child, models, search):
    """Searches whole models, or stored rows; returns the parent and {path: (models, channels)}."""
    if isinstance(models, list):
        stacked = {path: np.stack([model[path] for model in models]) for path in AXES}
        models = whole_models(LAYOUT, stacked, len(models))
    parent, sources = composite(LAYOUT, unflatten(child), models, search)
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
    # Rows are padded with zeros: nothing is nearer to a child of next to nothing.
    rng = np.random.default_rng(5)
    start, child = random_params(rng), random_params(rng, scale=1e-3)
    for models in ([start], [start, random_params(rng, start, 0.3)]):
        _, found = find(child, models, search)
        assert_found(found, reference(child, models, search))


def test_a_growing_pool_does_not_compile_again(monkeypatch):
    monkeypatch.setattr(candidates, "CHUNK_BYTES", 1024)
    rng = np.random.default_rng(6)
    start = random_params(rng)
    models = [start] + [random_params(rng, start, 0.3) for _ in range(12)]
    find(start, models[:10], OPTIONS[0])
    programs = nearest._products, candidates._measured, nearest._changes
    compiled = [program._cache_size() for program in programs]
    assert min(compiled) > 0
    for count in (11, 12, 13):
        find(start, models[:count], OPTIONS[0])
    assert [program._cache_size() for program in programs] == compiled


class SharedRows:
    """Models that borrow of each other, with rows that are stored twice, never moved, or nearly equal.

    Attributes:
        stored: the models as stored rows.
        models: the same, each whole.
        reads: owners in the order in which they were read.
    """

    def __init__(self, rng, tasks, search, keep):
        self.reads = []
        whole = [rows(random_params(rng))]
        owner, row = ({path: [np.zeros(len(own), int)] for path, own in whole[0].items()} for _ in range(2))
        packed = [{}]
        for path, own in whole[0].items():
            row[path][0] = np.arange(len(own))
        for task in range(1, tasks + 1):
            whole.append({})
            packed.append({})
            for path, start in whole[0].items():
                channels = np.arange(len(start))
                lender, scattered = rng.integers(task), 1.0 if search.candidates == "any" else 0.2
                lent = rng.permutation(channels) if rng.random() < scattered else channels
                owner[path].append(owner[path][lender][lent])
                row[path].append(row[path][lender][lent])
                values = whole[lender][path][lent].copy()
                active = rng.random(len(start)) < 0.4
                for channel in np.flatnonzero(active):
                    values[channel] = self._row(rng, start[channel], whole, path, channel, search)
                owner[path][-1] = np.where(active, task, owner[path][-1])
                row[path][-1] = np.where(active, np.cumsum(active) - 1, row[path][-1])
                whole[task][path] = values.astype(np.float32).astype(np.float64)
                packed[task][path] = whole[task][path][active]
        self.models = [from_rows(model) for model in whole]
        self.stored = StoredModels(
            *({path: np.stack(each) for path, each in values.items()} for values in (owner, row)),
            lambda number: self._read(number, packed),
            Recent(keep),
        )

    def _row(self, rng, start, whole, path, channel, search):
        kind, other = rng.integers(4), whole[rng.integers(len(whole) - 1)][path][channel]
        if kind == 0:
            return start  # stored, and never moved
        if kind == 1:
            return other  # stored twice
        if kind == 2 and search.candidates == "aligned":
            # Of moves of 0.3. Near 1, a cosine in float32 tells less apart than a distance.
            return other + (1e-2 if search.distance == "change" else 1e-4) * rng.standard_normal(start.shape)
        return start + 0.3 * rng.standard_normal(start.shape)

    def _read(self, number, packed):
        self.reads.append(number)
        if number == 0:
            return model_rows(LAYOUT, self.models[0])
        stored = {path: own.astype(np.float32) for path, own in packed[number].items()}
        kernel = stored["a/kernel"]
        return {**stored, "a/kernel": kernel[:, :-1], "a/bias": kernel[:, -1:]}


@pytest.mark.parametrize("search", OPTIONS, ids=names)
@pytest.mark.parametrize("limits", [(1 << 30, 1 << 24, 1 << 30), (700, 512, 1)], ids=["whole", "streamed"])
@pytest.mark.parametrize("seed", [0, 1])
def test_models_that_share_rows_are_searched_as_if_each_were_whole(search, limits, seed, monkeypatch):
    block, chunk, keep = limits
    monkeypatch.setattr(candidates, "BLOCK_BYTES", block)
    monkeypatch.setattr(candidates, "CHUNK_BYTES", chunk)
    rng = np.random.default_rng(seed)
    pool = SharedRows(rng, 12, search, keep)
    near = rows(pool.models[7])
    child = {path: own + 0.1 * rng.standard_normal(own.shape) for path, own in near.items()}
    for path, own in child.items():
        own[0], own[1] = near[path][0], rows(pool.models[0])[path][1]  # equal to a stored row; never moved
    child = from_rows(child)
    parent, found = find(child, pool.stored, search)
    assert_found(found, reference(child, pool.models, search))
    for layer in LAYOUT.layers:
        for index, (model, channel) in enumerate(zip(*found[layer.path], strict=True)):
            wanted = zoo.rows_of(layer, pool.models[model])[channel]
            assert zoo.rows_of(layer, parent)[index].tobytes() == wanted.tobytes()


def test_rows_that_were_kept_serve_a_pool_without_a_task_too():
    search = Search("l2")
    pool = SharedRows(np.random.default_rng(1), 6, search, 1 << 30)
    child = from_rows({path: own + 0.01 for path, own in rows(pool.models[2]).items()})
    find(child, pool.stored, search)
    left = [0, 1, 3, 4, 5, 6]
    owner, row = (
        {path: each[left] for path, each in values.items()} for values in (pool.stored.owner, pool.stored.row)
    )
    _, found = find(child, StoredModels(owner, row, pool.stored.read, pool.stored.kept), search)
    assert_found(found, reference(child, [pool.models[number] for number in left], search))


def test_a_stored_row_is_compared_once_however_many_models_borrow_it():
    search = Search("l2")
    pool = SharedRows(np.random.default_rng(0), 12, search, 1 << 30)
    find(pool.models[3], pool.stored, search)
    tables = candidates.tables_of(LAYOUT, pool.stored, "changes")
    blocks = candidates.blocks(tables, pool.stored, "changes")
    compared = sum(len(part.slots) for block in blocks for part in block.values())
    used = [
        (path, channel, owner, row)
        for path, owners in pool.stored.owner.items()
        for (model, channel), owner in np.ndenumerate(owners)
        for row in [pool.stored.row[path][model, channel]]
        if owner > 0 or row != channel  # the pre-trained model's own channels need no comparison
    ]
    assert compared == len(set(used)) < 0.7 * len(used)
    # What was compared stays: another search reads rows for its parent alone, each owner once.
    pool.reads.clear()
    find(pool.models[3], pool.stored, search)
    assert len(pool.reads) == len(set(pool.reads))


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


def test_recent_keeps_no_more_than_its_limit():
    made = []

    def get(key, count=10):
        return recent.get(key, lambda: made.append(key) or [np.full(count, key, np.uint8)])

    recent = Recent(25)
    for key in (1, 2, 1, 3):
        assert get(key)[0][0] == key
    assert made == [1, 2, 3] and recent.bytes == 20
    get(1), get(2)  # 2 was the one used longest ago
    assert made == [1, 2, 3, 2]
    assert len(get(4, 99)[0]) == 99 and recent.bytes == 99


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


def test_a_search_under_jit_is_refused():
    start = random_params(np.random.default_rng(0))
    with pytest.raises(CwpsError, match="outside of jit"):
        jax.jit(lambda child: find(child, [start], Search())[0])(start)
