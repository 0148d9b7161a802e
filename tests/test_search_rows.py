"""The stored rows that a search reads: sketches first, and rows where these leave it open."""

import jax
import numpy as np
import pytest
import zoo
from searched import (
    LAYOUT,
    OPTIONS,
    SharedRows,
    assert_found,
    find,
    from_rows,
    names,
    random_params,
    reference,
    rows,
)
from stored_models import whole_models

from cwps_jax.core.channels import layout_from_axes
from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.search import child as weight_by_weight
from cwps_jax.search import nearest, slots
from cwps_jax.search.child import Child
from cwps_jax.search.composite import Search, composite
from cwps_jax.search.models import gather, model_rows
from cwps_jax.search.sketch import rounded


@pytest.mark.parametrize("search", OPTIONS, ids=names)
@pytest.mark.parametrize(
    "limits", [(1 << 26, 1 << 20, 1 << 30), (64, 32, 0)], ids=["whole", "piece by piece"]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_models_that_share_rows_are_searched_as_if_each_were_whole(search, limits, seed, monkeypatch):
    for name, limit in zip(("BLOCK_BYTES", "PIECE", "KEEP_BYTES"), limits, strict=True):
        monkeypatch.setattr(slots, name, limit)
    monkeypatch.setattr(weight_by_weight, "EXACT_BYTES", limits[0])
    rng = np.random.default_rng(seed)
    pool = SharedRows(rng, 12, search)
    child = pool.child(rng)
    parent, found = find(child, pool.stored, search)
    assert_found(found, reference(child, pool.models, search))
    for layer in LAYOUT.layers:
        for index, (model, channel) in enumerate(zip(*found[layer.path], strict=True)):
            wanted = zoo.rows_of(layer, pool.models[model])[channel]
            assert zoo.rows_of(layer, parent)[index].tobytes() == wanted.tobytes()


def test_a_stored_row_is_a_candidate_once_however_many_models_borrow_it():
    pool = SharedRows(np.random.default_rng(0), 12, Search("l2"))
    found = pool.stored.slots
    used, oldest, begin = [], {}, 0
    for path, owners in pool.stored.owner.items():
        for (model, channel), owner in np.ndenumerate(owners):
            used.append((begin + channel, owner, pool.stored.row[path][model, channel]))
            oldest.setdefault(used[-1], model)
        begin += owners.shape[1]
    slot = list(zip(found.channel, found.owner, found.row, strict=True))
    assert len(slot) == len(set(slot)) < 0.7 * len(used)
    assert dict(zip(slot, found.model, strict=True)) == oldest
    assert np.all(np.diff(found.channel) >= 0)


@pytest.mark.parametrize("distance", ["l2", "cosine", "change"])
def test_what_sketches_decide_is_not_read(distance):
    """Of models that have each moved their own way, next to no rows but the nearest one's are read."""
    layout = layout_from_axes({"kernel": np.zeros((300, 20))}, {"kernel": (-1,)})
    rng = np.random.default_rng(0)
    start = rng.standard_normal((300, 20), np.float32)
    models = [start] + [start + 0.3 * rng.standard_normal(start.shape).astype(np.float32) for _ in range(9)]
    child = models[4] + np.float32(0.1) * rng.standard_normal(start.shape).astype(np.float32)
    stored, looked_at = whole_models(layout, [{"kernel": model} for model in models]), []

    def weighed(self, models, channel, owner, row):
        looked_at.extend(owner)
        return compare(self, models, channel, owner, row)

    compare = Child.weighed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Child, "weighed", weighed)
        _, sources = composite(layout, {"kernel": child}, stored, Search(distance, z=8.0))
    np.testing.assert_array_equal(sources["kernel"].model, 4)
    assert len(looked_at) < 10


def test_the_newest_of_many_models_is_found_though_all_others_are_the_first():
    start = random_params(np.random.default_rng(0))
    moved = random_params(np.random.default_rng(1))
    stored = whole_models(LAYOUT, [*[start] * 50, moved])
    for path in stored.owner:
        stored.owner[path][:50], stored.row[path][:50] = 0, stored.row[path][0]
    for search in OPTIONS:
        _, found = find(moved, stored, search)
        assert all(np.all(model == 50) for model, _ in found.values())


def test_rows_that_another_channel_borrowed_need_no_sketch():
    """Nor do the pre-trained model's; a model may consist of such rows alone."""
    rng = np.random.default_rng(1)
    start = random_params(rng)
    turned = from_rows({path: own[::-1].copy() for path, own in rows(start).items()})
    stored = whole_models(LAYOUT, [start, turned])
    for path in stored.owner:
        stored.owner[path][1], stored.row[path][1] = 0, np.arange(stored.row[path].shape[1])[::-1]
    child = random_params(rng, turned, 0.1)
    for search in OPTIONS:
        assert_found(find(child, stored, search)[1], reference(child, [start, turned], search))
    assert stored.sketched is None


@pytest.mark.parametrize("distance", ["l2", "cosine", "change"])
@pytest.mark.parametrize("move", [1e-6, 1e-2, 1.0])
def test_no_row_costs_less_or_more_than_its_sketch_allows(distance, move):
    rng = np.random.default_rng(2)
    start = random_params(rng)
    models = [start] + [random_params(rng, start, move) for _ in range(20)]
    models[3] = {path: np.zeros_like(leaf) for path, leaf in start.items()}
    models[4] = {path: 2 * leaf for path, leaf in start.items()}
    stored = whole_models(LAYOUT, models)
    child = Child.of(LAYOUT, random_params(rng, models[2], 0.5 * move), stored, distance, 1.0)
    slot = stored.slots
    low, high = nearest._bounds(child, stored)
    cost, squared = child.weighed(stored, slot.channel, slot.owner, slot.row)
    length = child.length[slot.channel]
    if distance == "change":
        cost = child.disagreement(cost, squared, length, child.fan[slot.channel])
    else:
        low, high = low + length, high + length
    off = 1e-6 * (np.abs(cost) + length)  # the rounding of what is the same for all candidates
    assert np.all(low <= cost + off) and np.all(cost <= high + off)
    assert np.all(np.isfinite(low)) and np.median(high - low) < (1 if distance == "change" else 0.1) * max(
        1, np.max(cost)
    )


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_what_rounding_leaves_out_is_known(scale):
    """Of zero rows it is nothing, of others a hundredth or so."""
    rows = np.float32(scale) * np.random.default_rng(0).standard_normal((6, 50), np.float32)
    rows[2], rows[3, 1:] = 0, 0
    rows[4] = np.float32(1e-44)
    whole, by, error = rounded(rows.copy())
    kept = whole.astype(np.int8)
    np.testing.assert_array_equal(kept, whole)
    left = np.linalg.norm(rows - by[:, None].astype(np.float64) * kept, axis=1)
    length = np.linalg.norm(rows.astype(np.float64), axis=1)
    assert np.all(np.abs(error - left) <= 1e-3 * left + 1e-6 * length + 1e-40)
    assert error[2] == 0 and np.all(error <= 0.02 * length)
    assert not np.any(kept[[2, 4]]) and abs(kept[3, 0]) == 127


@pytest.mark.parametrize("distance", ["l2", "cosine", "change"])
def test_equal_rows_tie_to_the_bit_in_a_large_layer(distance, monkeypatch):
    # As many weights as fill several buffers of a sum, and models that a product cannot tell apart. Near 1,
    # a cosine in float32 tells less apart than a distance.
    apart = 3e-3 if distance == "change" else 1e-5
    layout = layout_from_axes({"kernel": np.zeros((1000, 40))}, {"kernel": (-1,)})
    rng = np.random.default_rng(12)
    start = rng.standard_normal((1000, 40), np.float32)
    far = start + np.float32(0.3) * rng.standard_normal(start.shape, np.float32)
    models = [far + np.float32(apart) * rng.standard_normal(start.shape, np.float32) for _ in range(3)]
    models = [start, *(models[kind] for kind in (0, 1, 0, 2, 1, 2, 0))]
    copies = whole_models(layout, [{"kernel": model} for model in models])
    opened, exactly = [], Child.weighed

    def weighed(self, models, channel, *rest):
        opened.append(len(channel))
        return exactly(self, models, channel, *rest)

    monkeypatch.setattr(Child, "weighed", weighed)
    for copied, oldest in ((3, 1), (5, 2), (6, 4)):
        _, sources = composite(layout, {"kernel": models[copied]}, copies, Search(distance))
        np.testing.assert_array_equal(sources["kernel"].model, oldest)
    assert sum(opened) > 3 * 40 * len(models) / 2


@pytest.mark.parametrize("search", [Search("l2"), Search("l2", "layer")], ids=names)
def test_the_pre_trained_model_is_compared_weight_by_weight_too(search):
    rng = np.random.default_rng(13)
    start, child = random_params(rng, scale=0), random_params(rng)
    # About twice as far as the child: nearer to it than the start, or farther, by too little for products.
    nearer, farther = (
        {path: np.float32(far) * leaf for path, leaf in child.items()} for far in (2 - 1e-6, 2 + 1e-6)
    )
    for models, wanted in (([start, farther, nearer], 2), ([start, farther], 0)):
        _, found = find(child, models, search)
        assert all(np.all(model == wanted) for model, _ in found.values())


@pytest.mark.parametrize("search", OPTIONS, ids=names)
def test_a_search_needs_no_device(search):
    """It puts nothing there, and its parent is the host's."""
    pool = SharedRows(np.random.default_rng(5), 12, search)
    before = jax.live_arrays()  # referred to here, so that none of them goes
    with jax.transfer_guard("disallow"):
        parent, _ = find(pool.models[3], pool.stored, search)
    assert all(isinstance(leaf, np.ndarray) for leaf in parent.values())
    assert len(jax.live_arrays()) == len(before)


@pytest.mark.parametrize("keep", [0, 1 << 30])
def test_rows_stay_arranged_where_they_are_few(keep, monkeypatch):
    monkeypatch.setattr(slots, "KEEP_BYTES", keep)
    pool = SharedRows(np.random.default_rng(2), 12, OPTIONS[0])
    first = find(pool.models[3], pool.stored, OPTIONS[0])[1]
    assert bool(pool.stored.sketched.kept) == bool(keep)
    if keep:
        monkeypatch.setattr(slots.Sketched, "_arranged", lambda *_: pytest.fail("rows were arranged anew"))
    assert_found(find(pool.models[3], pool.stored, OPTIONS[0])[1], first)


@pytest.mark.parametrize("seed", [0, 1])
def test_leaves_are_gathered_on_any_axes(seed):
    shapes = {
        "scanned": {"kernel": (2, 5, 3), "bias": (2, 3)},
        "turned": {"kernel": (3, 3, 4, 2)},
        "query": {"kernel": (5, 2, 3), "bias": (2, 3)},
        "one": {"kernel": (5, 1), "bias": (1,)},
    }
    axes = {"scanned/kernel": (0, -1), "scanned/bias": (0, 1), "turned/kernel": (-2,)}
    axes |= {"query/kernel": (-2, -1), "query/bias": (0, 1), "one/kernel": (-1,), "one/bias": (-1,)}
    shapes = flatten(shapes)
    layout = layout_from_axes(unflatten({path: np.zeros(shape) for path, shape in shapes.items()}), axes)
    rng = np.random.default_rng(seed)
    whole = [{path: rng.standard_normal(shapes[path], np.float32) for path in axes} for _ in range(4)]
    owner = {layer.path: rng.integers(4, size=layer.channels) for layer in layout.layers}
    row = {layer.path: rng.integers(layer.channels, size=layer.channels) for layer in layout.layers}
    found = gather(layout, owner, row, lambda number: model_rows(layout, whole[number]), whole[0])
    for layer in layout.layers:
        wanted = [
            zoo.rows_of(layer, whole[o])[r] for o, r in zip(owner[layer.path], row[layer.path], strict=True)
        ]
        assert zoo.rows_of(layer, found).tobytes() == np.stack(wanted).tobytes()
    assert all(found[path].shape == shapes[path] for path in axes)
