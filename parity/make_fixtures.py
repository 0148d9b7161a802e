"""Writes what `make test` needs to check parity without torch: `make parity-fixtures`.

The fixtures hold keys, shapes, logits and predictions of the references, no weights and no images; those of
the sharing methods hold all arrays of a small network, a batch, and the loss and gradients that come of them.
"""

import argparse
import json
import pathlib
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import nn

import cwps_jax
from parity import arrays, modules, pictures, sharing, sharing_here
from parity.reference import Reference, load_state, logits
from parity.references import FULL, SHRUNK

FIXTURES = pathlib.Path(__file__).parents[1] / "tests" / "fixtures"
BATCH = 2
# Attention's key bias adds the same to all scores of a query, and a Mixer's last bias across the tokens the
# same to all features of a token, which every later norm takes away.
WITHOUT_EFFECT = ("key/bias", "mlp_tokens.fc2.bias", "token_mixing/Dense_1/bias")


def main() -> None:
    """Writes all fixtures; those of real weights with --data."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, help="folder of real weights and images")
    data = parser.parse_args().data
    shrunk: dict[str, Any] = {}
    for reference in SHRUNK:
        shrunk.setdefault(reference.name, []).append(case(reference))
    write("parity", shrunk)
    keys: dict[str, Any] = {}
    for reference in FULL:
        family = cwps_jax.BACKBONES[reference.name].module.__name__.lower()
        tables = keys.setdefault(family, {}).setdefault(reference.name, {})
        if reference.keys not in tables:
            tables[reference.keys] = reference.shapes()
    write("keys", keys)
    (FIXTURES / "sharing").mkdir(parents=True, exist_ok=True)
    for one in sharing.CASES:
        sharing_here.write(FIXTURES / "sharing" / f"{one.name}.safetensors", *sharing.fixture(one))
    if data:
        write("real", {"predictions": predictions(data), "photos": photo_logits(data)})


def write(folder: str, contents: dict[str, Any]) -> None:
    """Writes one JSON file for each name."""
    (FIXTURES / folder).mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        text = json.dumps(content, separators=(",", ":")).replace('},"', '},\n"')
        (FIXTURES / folder / f"{name}.json").write_text(text + "\n")


def case(reference: Reference) -> dict[str, Any]:
    """Returns a shrunk model's file and logits. Raises SystemExit where an array does not matter to them."""
    shapes = reference.shapes()
    weights = arrays.weights(shapes, reference.gain)
    found = expected(reference, weights)
    for key, array in weights.items():
        if array.dtype == np.float32 and not key.endswith(WITHOUT_EFFECT):
            turned = array.ravel()[::-1].reshape(array.shape).copy()
            others = expected(reference, {**weights, key: turned})
            changes = [np.abs(one - other).max() for one, other in zip(found, others, strict=True)]
            if min(changes) < 5e-4:
                raise SystemExit(f"{reference.name} ({reference.keys}): {key} does not matter, {changes}")
    return {
        "keys": reference.keys,
        "suffix": reference.suffix,
        "options": dict(reference.options),
        "gain": reference.gain,
        "images": [(BATCH, *size, 3) for size in reference.sizes],
        "logits": [one.astype(np.float64).round(5).tolist() for one in found],
        "shapes": shapes,
    }


def expected(reference: Reference, weights: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Returns the reference's logits at each size."""
    sized = zip(reference.sizes, reference.modules(weights), strict=True)
    return [logits(module, arrays.images((BATCH, *size, 3))) for size, module in sized]


def predictions(data: pathlib.Path) -> dict[str, str]:
    """Returns the CIFAR ResNets' classes of the test images, a digit each."""
    images, _ = pictures.cifar_test(data)
    found = {}
    for blocks in (3, 5, 7, 9):
        name = f"resnet{6 * blocks + 2}_cifar10"
        module = published(modules.SmallResNet(blocks), data / "weights" / f"{name}.safetensors")
        classes = np.concatenate([logits(module, part).argmax(1) for part in np.split(images, 10)])
        found[name] = "".join(map(str, classes))
    return found


def photo_logits(data: pathlib.Path) -> dict[str, Any]:
    """Returns SqueezeNet's five best classes of each photo, and their logits."""
    path = data / "weights" / "squeezenet1_1_imagenet.safetensors"
    found = logits(published(modules.SqueezeNet(), path), pictures.photos(data))
    best = np.argsort(-found, axis=1)[:, :5]
    values = np.take_along_axis(found, best, 1).astype(np.float64).round(5)
    return {"classes": best.tolist(), "logits": values.tolist()}


def published(module: nn.Module, path: pathlib.Path) -> nn.Module:
    """Returns a module with the weights of a file."""
    load_state(module, load_file(path))
    return module.eval()


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    main()
