"""Published weights on real images: accuracy, and the predictions of PyTorch, image by image.

Runs where CWPS_TEST_DATA names a folder of weights and images; none of them is in the project. The
fixtures hold PyTorch's predictions alone (parity/make_fixtures.py).
"""

import json
import os
import pathlib

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from cwps_jax import load_backbone, save_backbone
from parity import pictures

FIXTURES = pathlib.Path(__file__).parent / "fixtures" / "real"
DATA = os.environ.get("CWPS_TEST_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="CWPS_TEST_DATA names no folder")
# Top-1 of the weights' authors on all 10,000 test images, in percent.
ACCURACY = {"resnet20": 81.0, "resnet32": 82.6, "resnet44": 82.7, "resnet56": 83.2}


@pytest.fixture(scope="module")
def cifar():
    return pictures.cifar_test(pathlib.Path(DATA))


def weights(name: str) -> pathlib.Path:
    return pathlib.Path(DATA) / "weights" / f"{name}.safetensors"


def logits(model, variables, images, batch=200):
    apply = jax.jit(model.apply)
    return np.concatenate(
        [apply(variables, images[start : start + batch]) for start in range(0, len(images), batch)]
    )


@pytest.mark.parametrize(
    "name",
    [
        "resnet20",
        pytest.param("resnet32", marks=pytest.mark.slow),
        pytest.param("resnet44", marks=pytest.mark.slow),
        "resnet56",
    ],
)
def test_cifar_resnets_predict_what_pytorch_does(name, cifar):
    images, labels = cifar
    model, variables = load_backbone(f"{name}_cifar", weights(f"{name}_cifar10"))
    found = logits(model, variables, images).argmax(axis=1)
    expected = (FIXTURES / "predictions.json").read_text()
    assert "".join(map(str, found)) == json.loads(expected)[f"{name}_cifar10"]
    accuracy = np.mean(found == labels)
    deviation = np.sqrt(accuracy * (1 - accuracy) / len(labels))
    assert abs(accuracy - ACCURACY[name] / 100) < 2.5 * deviation


def test_squeezenet_predicts_what_pytorch_does():
    model, variables = load_backbone("squeezenet1_1", weights("squeezenet1_1_imagenet"))
    found = logits(model, variables, pictures.photos(pathlib.Path(DATA)))
    expected = json.loads((FIXTURES / "photos.json").read_text())
    np.testing.assert_array_equal(np.argsort(-found, axis=1)[:, :5], expected["classes"])
    best = np.take_along_axis(found, np.array(expected["classes"]), axis=1)
    np.testing.assert_allclose(best, expected["logits"], rtol=0, atol=1e-4)  # of 10 to 30


@pytest.mark.parametrize(
    ("name", "file"),
    [
        *((f"{name}_cifar", f"{name}_cifar10") for name in ACCURACY),
        ("squeezenet1_1", "squeezenet1_1_imagenet"),
    ],
)
def test_a_published_file_comes_back_to_the_bit(name, file, tmp_path):
    _, variables = load_backbone(name, weights(file))
    save_backbone(tmp_path / "back.safetensors", name, variables)
    wanted, found = load_file(weights(file)), load_file(tmp_path / "back.safetensors")
    assert wanted.keys() == found.keys()
    for key in wanted:
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(found[key], wanted[key], strict=True)
