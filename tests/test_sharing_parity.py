"""Losses and gradients of TAPS, LoRA and Piggyback are those of plain PyTorch, parity/sharing.py.

The fixtures hold a small network anywhere in training, a batch, and what PyTorch makes of them in float64.
"""

import pathlib

import pytest

from parity import sharing_here

FIXTURES = pathlib.Path(__file__).parent / "fixtures" / "sharing"
NAMES = sorted(path.stem for path in FIXTURES.glob("*.safetensors"))


def largest(arrays, about):
    """Returns {path: the larger of the absolute and the relative difference}."""
    return {path: max(one) for path, one in sharing_here.differences(arrays, about).items()}


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradients_are_pytorchs(name):
    found = largest(*sharing_here.read(FIXTURES / f"{name}.safetensors"))
    assert found.keys() > {"loss", "params/head/kernel", "params/head/bias"}
    assert not {path: one for path, one in found.items() if not one <= sharing_here.TOLERANCE}


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("taps_all_open", {"lambda_": 0.501}),
        ("lora", {"alpha": 6.01}),
        ("lora", {"rank_stabilised": True}),
        ("piggyback", {"ternary": True}),
    ],
)
def test_other_settings_are_noticed(name, other):
    arrays, about = sharing_here.read(FIXTURES / f"{name}.safetensors")
    found = largest(arrays, {**about, "settings": {**about["settings"], **other}})
    assert found["loss"] > 10 * sharing_here.TOLERANCE


def test_there_is_a_fixture_of_each_method():
    methods = [sharing_here.read(FIXTURES / f"{name}.safetensors")[1]["method"] for name in NAMES]
    assert methods == ["lora"] * 2 + ["piggyback"] * 2 + ["taps"] * 2
