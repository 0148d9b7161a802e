"""Numbers in few bits: what comes back, how far it is off, and what it costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cwps_jax.core.coding import BITS, Codes, encoded, rounded, step_sizes, straight_through

FEW = [bits for bits in BITS if bits < 32]


def changes(kind: str = "normal", rows: int = 40, size: int = 27, seed: int = 0) -> np.ndarray:
    drawn = getattr(np.random.default_rng(seed), kind)(size=(rows, size)).astype(np.float32)
    drawn *= np.geomspace(1e-6, 1e3, rows, dtype=np.float32)[:, None]
    return drawn


def relative_error(values: np.ndarray, found: np.ndarray) -> np.ndarray:
    return np.square(values - found).sum(axis=1) / np.square(values).sum(axis=1)


@pytest.mark.parametrize("bits", FEW)
def test_what_is_decoded_is_what_was_rounded(bits):
    values = changes()
    codes = encoded(values, bits, (40, 3, 9))
    np.testing.assert_array_equal(codes.rows(slice(None)), rounded(values, bits, axis=1))
    np.testing.assert_array_equal(codes.rows([7, 3]), rounded(values, bits, axis=1)[[7, 3]])
    assert (codes.shape, codes.size, codes.row_size) == ((40, 3, 9), values.size, 27)


@pytest.mark.parametrize("bits", FEW)
def test_it_costs_its_bits_in_whole_bytes_a_row_and_plane(bits):
    codes = encoded(changes(size=64), bits, (40, 64))
    assert codes.nbytes == 40 * (64 * bits // 8 + 2)


@pytest.mark.parametrize("bits", FEW)
@pytest.mark.parametrize("kind", ["normal", "laplace"])
def test_training_sees_what_is_stored(bits, kind):
    """The compiled rounding of columns is that of rows, but for sums in another order at the last digit."""
    values = changes(kind)
    start = np.ones_like(values.T)
    seen = jax.jit(lambda child: straight_through(child, start, bits))(start + values.T)
    stored = 1 + rounded((start + values.T - start).T, bits, axis=1)
    steps = step_sizes(values, bits, axis=1)
    off = np.abs(np.asarray(seen).T - stored)
    assert np.mean(off > 1e-2 * steps + 1e-6) < 0.01


def test_its_derivative_is_one():
    gradient = jax.grad(lambda child: (3 * straight_through(child, jnp.zeros((5, 4)), 2)).sum())
    np.testing.assert_array_equal(gradient(jnp.arange(20.0).reshape(5, 4)), np.full((5, 4), 3.0))


@pytest.mark.parametrize("kind", ["normal", "laplace"])
def test_each_bit_more_is_nearer(kind):
    values = changes(kind, rows=200, size=256)
    errors = [relative_error(values, rounded(values, bits, axis=1)).mean() for bits in sorted(FEW)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.51  # a sign and a mean leave 0.36 of a normal distribution, 0.5 of Laplace's
    assert errors[-1] < 1e-8 * 256


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["normal", "laplace"])
def test_step_sizes_are_nearly_the_best_there_are(bits, kind):
    values = changes(kind, rows=100, size=144)
    found = relative_error(values, rounded(values, bits, axis=1)).mean()
    deviation = np.sqrt(np.square(values).mean(axis=1, keepdims=True))
    half = 2 ** (bits - 1)

    def error(factor: float) -> np.ndarray:
        steps = factor * deviation
        levels = np.clip(np.floor(values / steps), -half, half - 1) + 0.5
        return relative_error(values, steps * levels)

    best = np.min([error(factor) for factor in np.geomspace(0.15, 3, 200)], axis=0).mean()
    assert found < 1.1 * best


def test_one_bit_is_a_sign_and_the_mean_size():
    values = changes()
    found = rounded(values, 1, axis=1)
    np.testing.assert_array_equal(np.sign(found), np.where(values < 0, -1, 1))
    np.testing.assert_allclose(np.abs(found[:, 0]), np.abs(values).mean(axis=1), rtol=2**-8)


@pytest.mark.parametrize("bits", FEW)
def test_a_row_that_did_not_move_stays_where_it_was(bits):
    values = changes(rows=3)
    values[1] = 0
    np.testing.assert_array_equal(encoded(values, bits, values.shape).rows(slice(None))[1], 0)


@pytest.mark.parametrize("bits", FEW)
def test_a_row_of_one_number_has_the_precision_of_its_step(bits):
    values = changes(size=1)
    np.testing.assert_allclose(encoded(values, bits, values.shape).rows(slice(None)), values, rtol=2**-7)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("more", [1, 2, 3, 4, 8, 16])
def test_more_bits_can_hold_the_same_to_the_bit(bits, more):
    if more < bits:
        return
    codes = encoded(changes("laplace"), bits, (40, 27))
    which = np.array([3, 39, 0])
    wider = codes.taken(which, more)
    assert (wider.bits, wider.shape) == (more, (3, 27))
    np.testing.assert_array_equal(wider.rows(slice(None)), codes.rows(which))


def test_no_rows_are_codes_too():
    codes = encoded(np.zeros((0, 27), np.float32), 3, (0, 27))
    assert isinstance(codes, Codes) and codes.rows(slice(None)).shape[0] == 0
