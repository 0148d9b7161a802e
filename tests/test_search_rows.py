"""The stored rows that a search reads: each once, on all devices, and nothing stays there."""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

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

from cwps_jax.core import candidates, nearest, stored
from cwps_jax.core.channels import layout_from_axes
from cwps_jax.core.recent import Recent
from cwps_jax.core.search import Search, composite
from cwps_jax.core.stored import model_rows
from cwps_jax.core.trees import flatten, unflatten


def test_a_growing_pool_seldom_compiles_again(monkeypatch):
    """A call's width is one of few: 17 to 20 rows of a channel share a program."""
    monkeypatch.setattr(candidates, "CHUNK_BYTES", 1024)
    rng = np.random.default_rng(6)
    start = random_params(rng)
    models = [start] + [random_params(rng) for _ in range(20)]
    find(start, models[:18], OPTIONS[0])
    programs = nearest._products, nearest._own_layer
    compiled = [program._cache_size() for program in programs]
    assert min(compiled) > 0
    for count in (19, 20, 21):
        find(start, models[:count], OPTIONS[0])
    assert [program._cache_size() for program in programs] == compiled


@pytest.mark.parametrize("search", OPTIONS, ids=names)
@pytest.mark.parametrize("limits", [(1 << 30, 1 << 24, 1 << 30), (700, 64, 1)], ids=["whole", "streamed"])
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
    _, found = find(child, dataclasses.replace(pool.stored, owner=owner, row=row, planned={}), search)
    assert_found(found, reference(child, [pool.models[number] for number in left], search))


def test_a_stored_row_is_compared_once_however_many_models_borrow_it(monkeypatch):
    search = Search("l2")
    pool = SharedRows(np.random.default_rng(0), 12, search, 1 << 30)
    find(pool.models[3], pool.stored, search)
    blocks = candidates.blocks(LAYOUT, pool.stored, "changes", rounded=True)
    compared = sum(len(slots) for block in blocks for _, slots, _ in block)
    used = [
        (path, channel, owner, row)
        for path, owners in pool.stored.owner.items()
        for (model, channel), owner in np.ndenumerate(owners)
        for row in [pool.stored.row[path][model, channel]]
        if owner > 0 or row != channel  # the pre-trained model's own channels need no comparison
    ]
    assert compared == len(set(used)) < 0.7 * len(used)
    # What was compared stays: another search reads what that leaves open, and its parent, alone.
    read, looked_up = nearest.slot_rows, []

    def slot_rows(slots, models, chosen, form):
        looked_up.extend(chosen)
        return read(slots, models, chosen, form)

    monkeypatch.setattr(candidates, "_parts", lambda *_: pytest.fail("rows were arranged anew"))
    monkeypatch.setattr(nearest, "slot_rows", slot_rows)
    find(pool.models[3], pool.stored, search)
    assert 0 < len(looked_up) < compared / 2


def test_of_a_pool_that_is_too_large_what_fits_stays(monkeypatch):
    monkeypatch.setattr(candidates, "BLOCK_BYTES", 200)
    arrange, arranged = candidates._parts, []

    def parts(*arguments):
        arranged.append(arguments)
        return arrange(*arguments)

    monkeypatch.setattr(candidates, "_parts", parts)
    search = Search("l2")
    pool = SharedRows(np.random.default_rng(2), 12, search, 1 << 30)
    first = find(pool.models[3], pool.stored, search)
    blocks, limit = len(arranged), pool.stored.kept.bytes * 2 // 3
    stored = dataclasses.replace(pool.stored, kept=Recent(limit))
    for _ in range(3):
        arranged.clear()
        assert_found(find(pool.models[3], stored, search)[1], first[1])
    assert 0 < len(arranged) < blocks / 2 and stored.kept.bytes <= limit


def test_rows_of_8_bits_are_multiplied_piece_by_piece(monkeypatch):
    monkeypatch.setattr(nearest, "PIECE_BYTES", 1)
    rng = np.random.default_rng(0)
    own, rows = rng.standard_normal((5, 7), np.float32), rng.integers(-127, 128, (8, 3, 7), np.int8)
    channel = rng.integers(5, size=8)
    wanted = np.einsum("gws,gs->gw", rows.astype(float), own[channel].astype(float))
    for products in (nearest._products_by_pieces, nearest._products_of_all):
        np.testing.assert_allclose(jax.jit(products)(own, rows, channel), wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_what_rounding_leaves_out_is_known(scale):
    """Of zero rows it is nothing, of others a hundredth or so."""
    rows = np.float32(scale) * np.random.default_rng(0).standard_normal((6, 50), np.float32)
    rows[2], rows[3, 1:] = 0, 0
    rows[4] = np.float32(1e-44)
    whole, by, error = candidates._rounded(rows.copy())
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
    opened = []
    exactly = nearest._Compared._fill_exactly

    def fill_exactly(self, slots, *rest):
        opened.append(len(slots))
        exactly(self, slots, *rest)

    monkeypatch.setattr(nearest._Compared, "_fill_exactly", fill_exactly)
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
def test_chunks_go_to_all_devices_and_find_what_one_finds(search, monkeypatch):
    monkeypatch.setattr(candidates, "CHUNK_BYTES", 16)
    pool = SharedRows(np.random.default_rng(3), 12, search, 1)
    rng = np.random.default_rng(4)
    near = rows(pool.models[7])
    child = from_rows({path: own + 0.1 * rng.standard_normal(own.shape) for path, own in near.items()})
    name = "_nearest" if search.candidates == "any" else "_products"
    compare, used = getattr(nearest, name), []

    def recorded(own, rows, *rest, **options):
        found = compare(own, rows, *rest, **options)
        used.append({device for leaf in jax.tree.leaves((own, found)) for device in leaf.devices()})
        return found

    monkeypatch.setattr(nearest, name, recorded)
    several = jax.devices()[:6]  # no more than a layer has chunks
    monkeypatch.setattr(jax, "local_devices", lambda: several)
    parent, found = find(child, pool.stored, search)
    assert all(len(devices) == 1 for devices in used)  # a chunk's work stays on one device
    assert set.union(*used) == set(several) and len(several) == 6
    used.clear()
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    one_parent, one_found = find(child, pool.stored, search)
    assert set.union(*used) == {jax.devices()[0]}
    assert_found(found, one_found)
    for path, leaf in parent.items():
        assert leaf.tobytes() == one_parent[path].tobytes()


@pytest.mark.parametrize("search", OPTIONS, ids=names)
def test_a_search_leaves_nothing_on_the_devices(search):
    pool = SharedRows(np.random.default_rng(5), 12, search, 1 << 30)
    before = jax.live_arrays()  # referred to here, so that none of them goes
    parent, _ = find(pool.models[3], pool.stored, search)
    assert all(isinstance(leaf, np.ndarray) for leaf in parent.values())
    assert sum(leaf.nbytes for leaf in jax.live_arrays()) == sum(leaf.nbytes for leaf in before)
    assert pool.stored.kept.bytes > 0


def test_a_cpu_device_takes_rows_without_a_copy():
    arrays = stored.copied({"a": np.arange(7, dtype=np.float32)[::-1], "b": np.ones((3, 5), np.float16)})
    for array in arrays.values():
        placed = jax.device_put(array, jax.devices("cpu")[0])
        assert placed.unsafe_buffer_pointer() == array.ctypes.data
    np.testing.assert_array_equal(arrays["a"], np.arange(7)[::-1])


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
    found = stored.gather(layout, owner, row, lambda number: model_rows(layout, whole[number]), whole[0])
    for layer in layout.layers:
        wanted = [
            zoo.rows_of(layer, whole[o])[r] for o, r in zip(owner[layer.path], row[layer.path], strict=True)
        ]
        assert zoo.rows_of(layer, found).tobytes() == np.stack(wanted).tobytes()
    assert all(found[path].shape == shapes[path] for path in axes)


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


def test_threads_that_share_a_recent_wait_for_nothing_that_another_makes():
    """Both are making the same at once, and one of them a second thing; each gets the one that is kept."""
    recent, both = Recent(100), threading.Barrier(2, timeout=10)

    def make():
        both.wait()
        recent.get("other", lambda: [np.zeros(5, np.uint8)])
        return [np.zeros(10, np.uint8)]

    with ThreadPoolExecutor(2) as executor:
        first, second = executor.map(lambda _: recent.get("same", make), range(2))
    assert first is second is recent.get("same", make)
    assert recent.bytes == 15
