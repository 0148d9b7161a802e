"""Logits equal to independent PyTorch models' (see parity/), and their weights files' keys accepted.

The fixtures hold the references' keys, shapes and logits; weights and images are made anew from hashes.
"""

import dataclasses
import functools
import json
import math
import pathlib

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cwps_jax import BACKBONES, load_backbone, save_backbone
from cwps_jax.core.trees import flatten
from cwps_jax.models.efficientnet import Stage
from parity import arrays

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
CLASSES = 7
# Logits of the shrunk models deviate by 0.7 to 4, between images by 0.03 to 0.9.
TOLERANCE = 1e-4

STAGES = (
    Stage(1, 3, 1, 8, 1),
    Stage(2, 3, 2, 16, 2),
    Stage(2, 5, 2, 16, 1),
    Stage(2, 3, 2, 24, 1),
    Stage(2, 5, 1, 24, 1),
    Stage(2, 5, 2, 24, 1),
    Stage(2, 3, 1, 32, 1),
)
# Name of the fixture: the backbone that is shrunk, and what is smaller.
SHRUNK = {
    "densenet": ("densenet121", {"block_sizes": (2, 3), "growth": 8, "stem_width": 16}),
    "efficientnet": ("efficientnet_b0", {"stages": STAGES, "stem_width": 8, "last_width": 48}),
    "mixer": ("mixer_b16", {"width": 32, "depth": 2, "patch_size": 4}),
    "resnet_basic": ("resnet18", {"stage_sizes": (1, 2, 1, 1), "widths": (64, 8, 16, 24)}),
    "resnet_bottleneck": ("resnet50", {"stage_sizes": (1, 2, 1, 1), "widths": (64, 4, 4, 8)}),
    "resnet_cifar": ("resnet20_cifar", {"stage_sizes": (1, 1, 1), "widths": (8, 16, 32)}),
    "squeezenet": ("squeezenet1_1", {"widths": ((4, 4), (8, 8), (12,)), "stem_width": 8}),
    "vit": ("vit_b16", {"width": 32, "depth": 2, "heads": 4, "patch_size": 4}),
}


def cases():
    """Returns a parameter (name, case) for each shrunk model and set of key names."""
    found = []
    for name in SHRUNK:
        for case in json.loads((FIXTURES / "parity" / f"{name}.json").read_text()):
            sizes = "-".join(str(shape[1]) for shape in case["images"])
            found.append(pytest.param(name, case, id=f"{name}-{case['keys']}-{sizes}"))
    return found


def full():
    """Returns a parameter (name, keys, shapes) for each published model and set of key names."""
    found = []
    for path in sorted((FIXTURES / "keys").glob("*.json")):
        for name, tables in json.loads(path.read_text()).items():
            found += [pytest.param(name, keys, tables[keys], id=f"{name}-{keys}") for keys in tables]
    return found


# Static models are compared by value: sets of key names share compiled programs.
@functools.partial(jax.jit, static_argnums=0)
def apply(model, variables, images):
    return model.apply(variables, images)


@pytest.mark.parametrize(("name", "case"), cases())
def test_logits_are_the_references_and_the_way_back_is_exact(name, case, tmp_path, monkeypatch):
    known, smaller = SHRUNK[name]
    settings = {**BACKBONES[known].settings, **smaller}
    shrunk = dataclasses.replace(BACKBONES[known], settings=settings, num_classes=CLASSES)
    monkeypatch.setitem(BACKBONES, name, shrunk)
    weights = arrays.weights(case["shapes"], case["gain"])
    path, back = tmp_path / f"weights{case['suffix']}", tmp_path / "back.safetensors"
    np.savez(path, **weights) if path.suffix == ".npz" else save_file(weights, path)

    shapes = [tuple(shape) for shape in case["images"]]
    loaded = [load_backbone(name, path, image_size=shape[1:3], **case["options"]) for shape in shapes]
    for (model, variables), shape, expected in zip(loaded, shapes, case["logits"], strict=True):
        found = apply(model, variables, arrays.images(shape))
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)

    _, variables = loaded[0]
    if path.suffix == ".npz":  # read only; the first set of names brings back the same
        save_backbone(back, name, variables)
        _, again = load_backbone(name, back, image_size=shapes[0][1:3])
        chex.assert_trees_all_equal(again, variables)
    else:
        save_backbone(back, name, variables, keys=case["keys"])
        found = load_file(back)
        assert {key for key in found if not key.endswith(arrays.COUNTER)} <= weights.keys()
        chex.assert_trees_all_equal({key: found[key] for key in weights}, weights)


@functools.cache
def leaves_of(name):
    """Returns {path: shape and type} of a published model, without making it."""
    backbone = BACKBONES[name]
    example = jax.ShapeDtypeStruct((1, backbone.image_size, backbone.image_size, 3), np.float32)
    return flatten(jax.eval_shape(backbone.create(backbone.num_classes).init, jax.random.key(0), example))


@pytest.mark.parametrize(("name", "keys", "shapes"), full())
def test_a_published_file_has_just_the_keys_that_we_read(name, keys, shapes):
    backbone, leaves = BACKBONES[name], leaves_of(name)
    (table,) = (table for table in backbone.tables if table.name == keys)
    wanted = {key: tuple(shape) for key, shape in shapes.items()}
    ours = {key: one.shape for key, one in table.conversions(leaves).items()}
    counters = {key: () for key in table.counters(leaves)}
    if any(key.endswith(arrays.COUNTER) for key in wanted):  # older files lack them
        ours |= counters
    assert ours == wanted
    assert backbone.parameters == sum(
        math.prod(leaf.shape) for path, leaf in leaves.items() if path.startswith("params/")
    )


def test_every_backbone_and_set_of_key_names_has_a_reference():
    covered = {(case.values[0], case.values[1]) for case in full()}
    assert covered == {(name, table.name) for name, one in BACKBONES.items() for table in one.tables}
    shrunk = {(SHRUNK[case.values[0]][0], case.values[1]["keys"]) for case in cases()}
    families = {BACKBONES[name].module: name for name, _ in shrunk}
    for name, one in BACKBONES.items():
        assert {(families[one.module], table.name) for table in one.tables} <= shrunk, name


def test_every_task_of_the_demo_was_exported_and_read_elsewhere():
    """By `make parity-exports`, which needs PyTorch."""
    found = json.loads((pathlib.Path(__file__).parent.parent / "parity" / "exports.json").read_text())
    folder = pathlib.Path(__file__).parent.parent / "docs" / "results"
    rows = json.loads((folder / "digits_seed0.json").read_text())["rows"]
    assert [row["task"] for row in found["tasks"]] == list(dict.fromkeys(row["task"] for row in rows))
    assert max(row["difference"] for row in found["tasks"]) < found["tolerance"] <= 1e-4
