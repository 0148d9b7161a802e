"""Entropy-coded changes: what comes back, what it costs, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cwps_jax.core.entropy import DEAD_ZONE, MOST, entropy_coded, fitted, levels_of, seen_through, together
from cwps_jax.errors import CwpsError


def changes(seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed).laplace
    sizes = {"small": (24, 27), "large": (64, 576), "still": (8, 40), "none": (0, 9), "single": (1, 1)}
    drawn = {name: (0.01 * draw(size=size)).astype(np.float32) for name, size in sizes.items()}
    return {**drawn, "still": np.zeros(sizes["still"], np.float32)}


def cost(values: dict, step: np.float32, dead_zone: float) -> int:
    return sum(entropy_coded(one, step, one.shape, dead_zone).nbytes for one in values.values())


def entropy_bytes(levels: np.ndarray) -> float:
    _, counts = np.unique(levels, return_counts=True)
    return float(-np.sum(counts * np.log2(counts / levels.size)) / 8)


@pytest.mark.parametrize("share", [0.005, 0.02, 0.05, 0.1])
def test_changes_fit_their_bytes_and_use_them(share):
    values = changes()
    allowance = 4 * share * sum(one.size for one in values.values())
    step, dead_zone = fitted(values, allowance)
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
    assert codes.nbytes <= 1.003 * least + codes.counts.nbytes + 16


def test_a_step_that_training_saw_stays_and_the_dead_zone_makes_it_fit():
    values = changes()
    allowance = 0.08 * sum(one.size for one in values.values())
    step, _ = fitted(values, allowance)
    grown = {name: np.float32(1.1) * one for name, one in values.items()}
    assert cost(grown, step, DEAD_ZONE) > allowance
    kept, dead_zone = fitted(grown, allowance, step)
    assert kept == step and dead_zone > DEAD_ZONE
    assert 0.9 * allowance < cost(grown, kept, dead_zone) <= allowance
    assert fitted(values, allowance, step) == (step, DEAD_ZONE)


def test_much_room_is_used_up_to_the_finest_step_there_is():
    values = changes()
    step, _ = fitted(values, 1e9)
    largest = max(np.abs(one).max(initial=0) for one in values.values())
    assert step == pytest.approx(largest / MOST)
    assert max(np.abs(levels_of(one, step)).max(initial=0) for one in values.values()) == MOST


def test_changes_of_nothing_need_no_room():
    still = {"a": np.zeros((4, 9), np.float32), "b": np.zeros((0, 9), np.float32)}
    step, dead_zone = fitted(still, 60)
    assert np.isfinite(step) and cost(still, step, dead_zone) <= 60


def test_too_few_bytes_are_refused_with_their_number():
    with pytest.raises(CwpsError, match=r"leaves -\d+ bytes for channels"):
        fitted(changes(), 10)


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


@pytest.mark.parametrize("part", ["codes", "counts"])
def test_what_does_not_decode_to_what_was_stored_is_told(part):
    """Such as by a coder of another release, which the files' own hashes do not see."""
    codes = entropy_coded(changes()["small"], np.float32(0.01), (24, 27))
    changed = getattr(codes, part).copy()
    changed[1] ^= 1
    with pytest.raises(CwpsError, match="use the release of constriction that wrote them"):
        dataclasses.replace(codes, **{part: changed}).rows([0])


def test_training_sees_what_is_stored_and_its_derivative_is_one():
    values, step = changes()["small"], np.float32(0.01)
    start = np.ones_like(values)
    seen = jax.jit(seen_through)(start + values, start, step)
    stored = start + step * levels_of(start + values - start, step)
    np.testing.assert_allclose(seen, stored, atol=1e-6)
    gradient = jax.grad(lambda child: (3 * seen_through(child, jnp.zeros((5, 4)), step)).sum())
    np.testing.assert_array_equal(gradient(jnp.arange(20.0).reshape(5, 4)), np.full((5, 4), 3.0))
