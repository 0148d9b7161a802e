"""The cases of parity/sharing.py by our methods: loss and gradients of a training step, without PyTorch."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from cwps_jax import methods
from cwps_jax.core.trees import Flat, flatten, unflatten
from cwps_jax.methods.method import Moment, Stage
from cwps_jax.methods.network import Network
from cwps_jax.modules import channel_layout
from cwps_jax.settings import TrainConfig
from cwps_jax.train.objectives import accuracy, cross_entropy
from cwps_jax.train.state import begun_state, make_plan, start_state
from cwps_jax.train.step import at_the_end, make_step
from cwps_jax.train.trainer import NO_POOL

TOLERANCE = 1e-5  # absolute and relative
TINY = float(np.finfo(np.float32).tiny)

# Where an array of PyTorch's is: in the own tree, in the pre-trained model, in its norm statistics.
OWN = {
    "score": "masks/{}/kernel",
    "change.weight": "params/{}/kernel",
    "change.bias": "params/{}/bias",
    "mask": "masks/{}/kernel",
    "a.weight": "lora_a/{}/kernel",
    "b.weight": "lora_b/{}/kernel",
}
MODEL = {
    "layer.weight": "params/{}/kernel",
    "layer.bias": "params/{}/bias",
    "weight": "params/{}/kernel",
    "bias": "params/{}/bias",
    "running_mean": "batch_stats/{}/mean",
    "running_var": "batch_stats/{}/var",
}


class Model(nn.Module):
    """The network of parity/sharing.py."""

    classes: int = 5

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Conv(6, (3, 3), padding=1, use_bias=False, name="conv1")(images)
        x = nn.silu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        x = nn.silu(nn.Conv(8, (3, 3), strides=2, padding=1, name="conv2")(x)).mean((1, 2))
        x = nn.silu(nn.Dense(10, name="hidden")(x))
        return nn.Dense(self.classes, name="head")(x)


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns a fixture's arrays, and its method, settings and PyTorch's version."""
    with safe_open(path, "numpy") as file:
        about = json.loads(file.metadata()["case"])
    return load_file(path), about


def write(path: pathlib.Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Writes a fixture."""
    contiguous = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
    save_file(contiguous, path, {"case": json.dumps(about)})


def differences(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Returns how far our loss and gradients are from a fixture's, by their paths: (absolute, relative).

    Both are largest differences within a leaf; the second is in units of the leaf's largest gradient.

    Args:
        arrays: as `parity.sharing.fixture` gives them.
        about: method and settings, likewise.

    Raises:
        ValueError: we train other leaves than PyTorch's side does.
    """
    found, expected = loss_and_gradients(arrays, about)
    if found.keys() != expected.keys():
        raise ValueError(f"of one side alone: {sorted(found.keys() ^ expected.keys())}")
    apart = {path: float(np.abs(found[path] - expected[path]).max()) for path in found}
    sizes = {path: float(np.abs(expected[path]).max()) for path in found}
    return {path: (one, one / max(sizes[path], TINY)) for path, one in apart.items()}


def loss_and_gradients(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> tuple[Flat, Flat]:
    """Returns {"loss" or path in the own tree: array}, ours and the fixture's, in our layout.

    Args:
        arrays: as `parity.sharing.fixture` gives them.
        about: method and settings, likewise.
    """
    state, gradients = _under(arrays, "state/"), _under(arrays, "gradients/")
    images = np.ascontiguousarray(arrays["batch/images"].transpose(0, 2, 3, 1))
    example = jax.ShapeDtypeStruct((1, *images.shape[1:]), np.float32)
    model = Model()
    network = Network(model, channel_layout(model, example), example)
    config = TrainConfig(method=methods.with_settings(about["method"], about["settings"]), epochs=1)
    config.method.check(network, config)
    (stage,) = config.method.stages(network, config)
    stage = _recording(stage)
    start = unflatten({_place(key, MODEL): _turned(value) for key, value in state.items() if _in_model(key)})
    begun = stage.begin(Moment(network, NO_POOL, config, start, {}, {}, {}))
    own = flatten(begun.own)
    for key, value in state.items():
        if not _in_model(key):
            path = _place(key, OWN)
            moved = _turned(value).reshape(own[path].shape)
            # TAPS's public form trains the change, ours the changed weights.
            own[path] = own[path] + moved if ".change." in key else moved
    begun = dataclasses.replace(begun, own=unflatten(own))

    fresh = {name: group.optimizer.init(begun.own[name]) for name, group in stage.groups.items()}
    ready = begun_state(start_state({"batch_stats": start["batch_stats"]}, config), stage, begun, fresh)
    plan = make_plan(config, stage, first_epoch=0, epochs=1, steps_per_epoch=1)
    batch = {"image": images, "label": arrays["batch/labels"].astype(np.int32)}
    step = jax.jit(make_step(stage, model, cross_entropy, accuracy))
    after, metrics = step(ready, begun.frozen, plan, batch)
    penalty = jax.jit(functools.partial(at_the_end, stage))(begun.own, begun.frozen).penalty

    found = {path: np.asarray(one) for path, one in flatten(after.optimizers).items()}
    found["loss"] = np.asarray(metrics["loss"] + (0 if penalty is None else metrics["lambda"] * penalty))
    expected = {}
    for key, gradient in gradients.items():
        path = _place(key, MODEL if _in_model(key) else OWN)
        expected[path] = _turned(gradient).reshape(own[path].shape)
    return found, {**expected, "loss": arrays["loss"]}


def _recording(stage: Stage) -> Stage:
    """Returns the stage with optimizers whose state is the last gradients."""
    record = optax.GradientTransformation(lambda params: params, lambda updates, *_: (updates, updates))
    groups = {name: group._replace(optimizer=record) for name, group in stage.groups.items()}
    return dataclasses.replace(stage, groups=groups)


def _under(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def _in_model(key: str) -> bool:
    return key.partition(".")[2] in MODEL


def _place(key: str, places: Mapping[str, str]) -> str:
    module, _, kind = key.partition(".")
    return "params/norm/scale" if key == "norm.weight" else places[kind].format(module)


def _turned(array: np.ndarray) -> Any:
    """Returns an array with PyTorch's outputs-first kernels the other way round, outputs last."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
