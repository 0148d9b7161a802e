"""Entropy-coded changes: what comes back, what it costs, and what is refused."""

import zlib

import constriction
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cwps_jax.core.entropy import (
    DEAD_ZONE,
    MOST,
    coded_alike,
    entropy_coded,
    fitted,
    from_parts,
    levels_of,
    seen_through,
    together,
)
from cwps_jax.core.taps import CLASSES, frequencies, taps
from cwps_jax.errors import CwpsError


def changes(seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed).laplace
    sizes = {"small": (24, 27), "large": (64, 576), "still": (8, 40), "none": (0, 9), "single": (1, 1)}
    drawn = {name: (0.01 * draw(size=size)).astype(np.float32) for name, size in sizes.items()}
    return {**drawn, "still": np.zeros(sizes["still"], np.float32)}


def alike(values: dict, of_taps: bool = False) -> dict:
    return {name: coded_alike(one, 1, of_taps) for name, one in values.items()}


def cost(values: dict, step: np.float32, dead_zone: float, of_taps: bool = False) -> int:
    return sum(entropy_coded(one, step, one.shape, dead_zone, of_taps).nbytes for one in values.values())


def smooth(seed: int = 0) -> dict[str, np.ndarray]:
    """Changes of kernels of 3 x 3 taps, (channels, 9 x inputs), most of whose energy lies in their mean."""
    draw = np.random.default_rng(seed).laplace
    sizes = {"small": (24, 9, 3), "large": (64, 9, 64), "none": (0, 9, 5)}
    drawn = {}
    for name, size in sizes.items():
        mean = draw(size=(size[0], 1, size[2]))
        drawn[name] = (
            (0.01 * (mean + 0.5 * draw(size=size))).astype(np.float32).reshape(size[0], -1 if size[0] else 45)
        )
    return drawn


def entropy_bytes(levels: np.ndarray) -> float:
    _, counts = np.unique(levels, return_counts=True)
    return float(-np.sum(counts * np.log2(counts / levels.size)) / 8)


@pytest.mark.parametrize("share", [0.005, 0.02, 0.05, 0.1])
def test_changes_fit_their_bytes_and_use_them(share):
    values = changes()
    allowance = 4 * share * sum(one.size for one in values.values())
    step, dead_zone = fitted(alike(values), allowance)
    assert dead_zone == DEAD_ZONE
    assert 0.85 * allowance < cost(values, step, dead_zone) <= allowance


def test_what_is_decoded_is_the_nearest_multiple_but_for_the_dead_zone():
    values, step = changes()["large"], np.float32(0.01)
    codes = entropy_coded(values, step, (64, 3, 192))
    decoded = codes.rows(slice(None))
    np.testing.assert_array_equal(decoded, step * levels_of(values, step))
    np.testing.assert_array_equal(codes.rows([5, 2]), decoded[[5, 2]])
    assert (codes.shape, codes.size, codes.row_size) == ((64, 3, 192), values.size, 576)
    off = np.abs(values - decoded)
    assert off.max() <= (0.5 + DEAD_ZONE) * step * 1.0001
    assert np.all(decoded[np.abs(values) < 0.59 * step] == 0)


@pytest.mark.parametrize("name", ["small", "large", "still", "none", "single"])
def test_it_costs_little_more_than_its_entropy(name):
    values, step = changes()[name], np.float32(0.02)
    codes = entropy_coded(values, step, values.shape)
    np.testing.assert_array_equal(codes.rows(slice(None)), step * levels_of(values, step))
    least = entropy_bytes(levels_of(values, step)) if values.size else 0
    (table,) = codes.tables
    assert codes.nbytes <= 1.003 * least + table.nbytes + 16 + 0.02 * values.shape[0]  # signs need whole bits


def test_a_step_that_training_saw_stays_and_the_dead_zone_makes_it_fit():
    values = changes()
    allowance = 0.08 * sum(one.size for one in values.values())
    step, _ = fitted(alike(values), allowance)
    grown = {name: np.float32(1.1) * one for name, one in values.items()}
    assert cost(grown, step, DEAD_ZONE) > allowance
    kept, dead_zone = fitted(alike(grown), allowance, step)
    assert kept == step and dead_zone > DEAD_ZONE
    assert 0.9 * allowance < cost(grown, kept, dead_zone) <= allowance
    assert fitted(alike(values), allowance, step) == (step, DEAD_ZONE)


def test_much_room_is_used_up_to_the_finest_step_there_is():
    values = changes()
    step, _ = fitted(alike(values), 1e9)
    largest = max(np.abs(one).max(initial=0) for one in values.values())
    assert step == pytest.approx(largest / MOST)
    assert max(np.abs(levels_of(one, step)).max(initial=0) for one in values.values()) == MOST


def test_changes_of_nothing_need_no_room():
    still = {"a": np.zeros((4, 9), np.float32), "b": np.zeros((0, 9), np.float32)}
    step, dead_zone = fitted(alike(still), 60)
    assert np.isfinite(step) and cost(still, step, dead_zone) <= 60


def test_too_few_bytes_are_refused_with_their_number():
    with pytest.raises(CwpsError, match=r"leaves -\d+ bytes for channels"):
        fitted(alike(changes()), 10)


def test_rows_of_several_tasks_come_together_to_the_bit():
    one, other = (
        entropy_coded(changes(seed)["small"], np.float32(step), (24, 27))
        for seed, step in ((0, 0.01), (1, 0.02))
    )
    both = together([(one, np.array([3, 1])), (other, np.array([0]))])
    expected = np.concatenate([one.rows([3, 1]), other.rows([0])])
    np.testing.assert_array_equal(both.rows(slice(None)), expected)
    assert both.shape == (3, 27) and len(both.steps) == 3
    again = together([(both, np.array([2, 0]))])
    np.testing.assert_array_equal(again.rows(slice(None)), expected[[2, 0]])
    assert len(one.taken(np.array([1, 2]), 0).steps) == 1


@pytest.mark.parametrize("of_taps", [False, True])
@pytest.mark.parametrize("part", ["codes", "magnitudes0"])
def test_what_does_not_decode_to_what_was_stored_is_told(part, of_taps):
    """Such as by a coder of another release, which the files' own hashes do not see."""
    codes = entropy_coded(changes()["small"], np.float32(0.002), (24, 27), of_taps=of_taps)
    changed = {name: one.copy() for name, one in codes.parts.items()}
    changed[part][len(changed[part]) // 2] ^= np.iinfo(changed[part].dtype).max
    with pytest.raises(CwpsError, match="use the release of constriction that wrote them"):
        from_parts(codes.shape, changed).rows([0])


def test_frequencies_and_taps_are_inverse_and_whole_levels_give_whole_taps():
    values = smooth()["large"]
    np.testing.assert_allclose(taps(frequencies(values, 1), 1), values, atol=1e-8)
    levels = np.random.default_rng(0).integers(-MOST, MOST + 1, (5, 90)).astype(np.int16)
    whole = taps(levels, 1)
    np.testing.assert_array_equal(whole, taps(levels.astype(np.float64), 1))  # int16 holds all of them
    np.testing.assert_array_equal(jax.jit(lambda each: taps(each, 1))(levels.astype(np.float32)), whole)
    np.testing.assert_allclose(frequencies(whole.astype(np.float32), 1), levels, rtol=1e-5, atol=1e-3)
    columns = np.ascontiguousarray(values.T)
    np.testing.assert_array_equal(frequencies(columns), frequencies(values, 1).T)
    kernel = columns.reshape(3, 3, -1, len(values))
    np.testing.assert_array_equal(frequencies(kernel).reshape(columns.shape), frequencies(columns))


def test_the_basis_is_that_of_the_discrete_cosine_transform():
    scipy_fft = pytest.importorskip("scipy.fft")
    kernel = np.random.default_rng(1).normal(size=(3, 3, 4, 5)).astype(np.float32)
    expected = scipy_fft.dctn(kernel, axes=(0, 1), norm="ortho")
    lengths = np.array([2 * 3**0.5, 3 * 2**0.5, 2 * 6**0.5])
    ours = frequencies(kernel) * np.multiply.outer(lengths, lengths)[..., None, None]
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_kernels_come_back_from_their_frequencies_in_whole_steps():
    values, step = smooth()["large"], np.float32(0.003)
    codes = entropy_coded(values, step, (64, 9, 64), of_taps=True)
    assert codes.of_taps and len(codes.tables) == len(CLASSES)
    levels = levels_of(frequencies(values, 1), step)
    np.testing.assert_array_equal(codes.levels(), levels)
    np.testing.assert_array_equal(codes.rows(slice(None)), taps(levels, 1) * step)
    stored = from_parts(codes.shape, codes.parts)
    np.testing.assert_array_equal(stored.rows([3, 1]), codes.rows([3, 1]))
    both = together([(codes, np.array([3, 1])), (codes, np.array([0]))])
    np.testing.assert_array_equal(both.rows(slice(None)), codes.rows([3, 1, 0]))


@pytest.mark.parametrize("share", [0.01, 0.02, 0.05])
def test_smooth_changes_are_stored_better_as_frequencies(share):
    values = smooth()
    allowance = 4 * share * sum(one.size for one in values.values())
    errors = {}
    for of_taps in (False, True):
        step, dead_zone = fitted(alike(values, of_taps), allowance)
        assert 0.85 * allowance < cost(values, step, dead_zone, of_taps) <= allowance
        decoded = {
            name: entropy_coded(one, step, one.shape, dead_zone, of_taps).rows(slice(None))
            for name, one in values.items()
        }
        errors[of_taps] = sum(float(np.sum((values[name] - decoded[name]) ** 2)) for name in values)
    assert errors[True] < 0.85 * errors[False]


def test_rows_of_pools_of_format_6_are_read_to_the_bit():
    """Their one table counts signed levels."""
    values, step = changes()["small"], np.float32(0.01)
    levels = levels_of(values, step).astype(np.int32)
    highest = np.abs(levels).max()
    counts = np.bincount(levels.ravel() + highest, minlength=2 * highest + 1)
    coder = constriction.stream.stack.AnsCoder()
    model = constriction.stream.model.Categorical(counts / counts.sum(), perfect=False)
    coder.encode_reverse(levels.ravel() + highest, model)
    check = np.array([zlib.crc32(levels.astype(np.int8).tobytes())], np.uint32)
    parts = {
        "codes": np.concatenate([check, coder.get_compressed()]),
        "steps": np.array([step]),
        "counts": counts.astype(np.uint16),
    }
    decoded = from_parts((24, 27), parts).rows(slice(None))
    np.testing.assert_array_equal(decoded, step * levels.astype(np.float32))
    parts["codes"][0] ^= 1
    with pytest.raises(CwpsError, match="do not decode to what was stored"):
        from_parts((24, 27), parts)
    none = {"codes": np.zeros(1, np.uint32), "steps": np.array([step]), "counts": np.zeros(1, np.uint8)}
    assert from_parts((0, 9), none).rows(slice(None)).shape == (0, 9)


@pytest.mark.parametrize("of_taps", [False, True])
def test_training_sees_what_is_stored_and_its_derivative_is_one(of_taps):
    values, step = smooth()["small"], np.float32(0.002)
    start = np.ones_like(values)
    given = (start + values).T.copy(), start.T.copy()
    seen = jax.jit(seen_through, static_argnums=3)(*given, step, of_taps)
    stored = start + entropy_coded(given[0].T - start, step, values.shape, of_taps=of_taps).rows(slice(None))
    np.testing.assert_allclose(seen.T, stored, atol=1e-6)
    gradient = jax.grad(lambda child: (3 * seen_through(child, jnp.zeros((9, 4)), step, of_taps)).sum())
    np.testing.assert_array_equal(gradient(jnp.arange(36.0).reshape(9, 4)), np.full((9, 4), 3.0))
