"""Weights files: every key used, every leaf filled, or all differences listed."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TinyModel
from safetensors.numpy import save_file

from cwps_jax.core.trees import flatten
from cwps_jax.errors import CwpsError
from cwps_jax.models.pretrained import load_weights, save_weights

EXAMPLE = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)


@pytest.fixture
def flat(tiny_variables) -> dict[str, np.ndarray]:
    return flatten(tiny_variables)


def load(path):
    return load_weights(path, TinyModel, EXAMPLE)


def test_the_round_trip_is_bit_identical(tmp_path, tiny_variables):
    save_weights(tmp_path / "w.safetensors", tiny_variables)
    model, loaded = load(tmp_path / "w.safetensors")
    assert model.classes == 3
    chex.assert_trees_all_equal(loaded, tiny_variables)


def test_all_differences_are_listed(tmp_path, flat):
    missing, misshapen = "params/conv1/kernel", "params/conv2/bias"
    del flat[missing]
    flat[misshapen] = np.zeros(5, np.float32)
    flat["params/conv9/kernel"] = np.zeros(5, np.float32)
    save_file(flat, tmp_path / "w.safetensors")
    with pytest.raises(CwpsError) as error:
        load(tmp_path / "w.safetensors")
    for part in (
        f"missing keys: {missing}",
        "surplus keys: params/conv9/kernel",
        f"{misshapen} (5,) instead",
    ):
        assert part in str(error.value)


def test_without_a_head_the_classes_are_not_known(tmp_path, flat):
    del flat["params/head/kernel"]
    save_file(flat, tmp_path / "w.safetensors")
    with pytest.raises(CwpsError, match="missing key params/head/kernel"):
        load(tmp_path / "w.safetensors")


def test_values_that_are_not_finite_are_refused(tmp_path, flat):
    flat["params/conv2/bias"] = np.full(8, np.nan, np.float32)
    save_file(flat, tmp_path / "w.safetensors")
    with pytest.raises(CwpsError, match="params/conv2/bias has values that are not finite"):
        load(tmp_path / "w.safetensors")


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\x80\x04\x95 a pickle"])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(CwpsError, match="not a readable safetensors file"):
        load(tmp_path / "w.safetensors")


def test_a_truncated_file_is_refused(tmp_path, tiny_variables):
    path = tmp_path / "w.safetensors"
    save_weights(path, tiny_variables)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CwpsError, match="not a readable safetensors file"):
        load(path)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CwpsError, match="no such weights file"):
        load(tmp_path / "w.safetensors")
