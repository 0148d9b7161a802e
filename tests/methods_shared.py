"""What the tests of the methods share: two tiny pre-trained models, and a task learned by every method.

The network of each task is trained once in a session, with settings by which its masks and gates move.
"""

import atexit
import dataclasses
import functools
import hashlib
import json
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from conftest import TinyModel

import cwps_jax as cwps
from cwps_jax import models
from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.methods import METHODS
from cwps_jax.methods.method import Begun, Effective, Method, Moment, Stage
from cwps_jax.methods.pooled import Pooled
from cwps_jax.search.models import StoredModels, model_rows
from cwps_jax.train.step import at_the_end

PROMPTING = ("l2p", "dualprompt")
CONFIG = cwps.TrainConfig(epochs=4, batch_size=16, learning_rate=0.05, budget=0.6)

# Two of each where a setting changes what is stored.
LEARNED: dict[str, Method] = {
    "channels": cwps.methods.Cwps(),
    "layers": cwps.methods.Cwps(granularity="layer"),
    "weights": cwps.methods.Cwps(granularity="weight"),
    "finetune": cwps.methods.Finetune(),
    "probe": cwps.methods.Probe(),
    "norm_only": cwps.methods.NormOnly(),
    "bitfit": cwps.methods.BitFit(),
    "ssf": cwps.methods.Ssf(learning_rate=0.02),
    "taps": cwps.methods.Taps(lambda_=0.125, free_epochs=1),
    "piggyback": cwps.methods.Piggyback(learning_rate=2e-3),
    "ternary": cwps.methods.Piggyback(ternary=True, learning_rate=5e-3),
    "packnet": cwps.methods.PackNet(learning_rate=0.02),
    "lora": cwps.methods.Lora(rank=2, learning_rate=0.02),
    "adapter": cwps.methods.Adapter(),
    "atlas": cwps.methods.Atlas(tasks=("channels", "finetune")),
    "ba2": cwps.methods.Ba2(learning_rate=3e-4, budget=0.7),
    "l2p": cwps.methods.L2P(prompts=6, length=2, top=3, learning_rate=0.3),
    "dualprompt": cwps.methods.DualPrompt(expert_length=3, learning_rate=0.3),
}
TASKS = tuple(LEARNED)


def images_of(count: int, seed: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, size, size, 1)).astype(np.float32)


def brightest_third(images: np.ndarray) -> np.ndarray:
    thirds = np.array_split(images, 3, axis=1)
    return np.argmax([third.mean((1, 2, 3)) for third in thirds], 0)


def task(size: int = 8, *, turned: bool = False, train: int = 64) -> cwps.TaskData:
    """Returns a task of three classes; turned, it is the same of images that are upside down."""
    splits = []
    for seed, count in enumerate((train, 16, 16)):
        images = images_of(count, seed, size)
        splits.append({"image": images[:, ::-1] if turned else images, "label": brightest_third(images)})
    return cwps.TaskData(*splits, 3)


def noisy(tree: Mapping[str, Any], scale: float, seed: int = 0) -> dict[str, Any]:
    """Returns the tree with normal noise of that scale on every leaf."""
    rng = np.random.default_rng(seed)
    move = lambda leaf: np.asarray(leaf) + scale * rng.standard_normal(leaf.shape).astype(np.float32)
    return unflatten({path: move(leaf) for path, leaf in flatten(tree).items()})


@dataclasses.dataclass(frozen=True)
class Setting:
    """A model with its pre-trained variables, none of whose leaves is 0 or 1, and a trainer of its tasks."""

    model: nn.Module
    size: int
    trainer: cwps.Trainer
    variables: dict[str, Any]

    @property
    def layout(self) -> cwps.Layout:
        return self.trainer.layout

    def moment(self, config: cwps.TrainConfig = CONFIG, pool: Pooled | None = None, **found: Any) -> Moment:
        """Returns the moment before a task's first stage."""
        pool = pool or pooled_in_memory(self.layout, self.variables["params"])
        return Moment(self.trainer.network, pool, config, self.variables, {}, {}, found)

    def new_pool(self, folder: pathlib.Path) -> cwps.Pool:
        return cwps.Pool.create(folder, self.variables, self.layout)


def _setting(model: nn.Module, size: int) -> Setting:
    trainer = cwps.make_trainer(model, task(size), config=CONFIG)
    variables = trainer.new_variables(0)
    variables["params"] = noisy(variables["params"], 0.1, seed=1)
    if "batch_stats" in variables:
        means = noisy(variables["batch_stats"], 0.1, seed=2)
        variables["batch_stats"] = jax.tree.map(lambda leaf: np.abs(leaf) + 0.05, means)
    return Setting(model, size, trainer, variables)


@functools.cache
def tiny() -> Setting:
    return _setting(TinyModel(), 8)


@functools.cache
def vit() -> Setting:
    return _setting(models.create("vit_nano4", 3), 12)


def setting_of(method: str) -> Setting:
    """Returns the model on which a method, or a task of `LEARNED`, is tested."""
    return vit() if method in PROMPTING else tiny()


def pooled_in_memory(layout: cwps.Layout, pretrained: Mapping[str, Any], **tasks: Any) -> Pooled:
    """Returns the pre-trained model as a pool hands it to a stage, with plain parameters of further tasks."""
    leaves = flatten(pretrained)
    owner = {one.path: np.zeros((1, one.channels), np.int32) for one in layout.layers}
    row = {one.path: np.arange(one.channels, dtype=np.int32)[None] for one in layout.layers}
    stored = StoredModels(
        owner, row, lambda number: model_rows(layout, leaves), lambda number: {}, lambda: leaves
    )
    give = {name: functools.partial(dict, params) for name, params in tasks.items()}
    return Pooled(stored, ("pretrained",), give)


def first_stage(method: Method, moment: Moment) -> tuple[Stage, Begun]:
    """Returns the first stage of a task, begun."""
    stage = method.stages(moment.network, moment.training)[0]
    return stage, stage.begin(moment)


def effective(stage: Stage, own: Any, frozen: Any) -> Effective:
    """Returns what a stage's rule computes, on the host."""
    return jax.device_get(at_the_end(stage, *jax.device_put((own, frozen))))


def run(where: Setting, method: Method, *, pool: Pooled | None = None, train: int = 64, **options: Any):
    """Returns (what the trainer found, the `Progress` of each epoch) of a task by a method."""
    config, seen = dataclasses.replace(CONFIG, method=method, **options), []
    pool = pool or pooled_in_memory(where.layout, where.variables["params"])
    split = task(where.size, train=train).train
    return where.trainer.train(where.variables, split, config, pool, seen.append), seen


@dataclasses.dataclass(frozen=True)
class Learned:
    """A pool with all tasks of `LEARNED` that a model has, and what was learned."""

    pool: cwps.Pool
    tasks: Mapping[str, cwps.LearnedTask]
    pretrained_before: str  # hash of the pre-trained model's files before the first task


@functools.cache
def learned(prompting: bool) -> Learned:
    """Returns the pool of one of the two models, with every task that is learned on it."""
    folder = pathlib.Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    where = vit() if prompting else tiny()
    pool = where.new_pool(folder / "pool")
    before, found = files_hash(pool.folder / "pretrained"), {}
    for name, method in LEARNED.items():
        if (name in PROMPTING) == prompting:
            config = dataclasses.replace(CONFIG, method=method)
            data = task(where.size, turned=True)
            found[name] = cwps.learn_task(pool, name, where.model, data, config=config, trainer=where.trainer)
    return Learned(pool, found, before)


def learned_by(name: str) -> Learned:
    return learned(name in PROMPTING)


def files_hash(folder: pathlib.Path) -> str:
    """Returns one hash over names and contents of all files of a pool's folder but its locks."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [path for path in files if path.name != ".lock" and path.parent.name != ".learning"]
    parts = [path.relative_to(folder).as_posix().encode() + path.read_bytes() for path in files]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def logits(model: nn.Module, variables: Mapping[str, Any], images: np.ndarray) -> np.ndarray:
    """Returns logits by one compiled program on one device."""
    return np.asarray(jax.jit(lambda variables, images: model.apply(variables, images))(variables, images))


def logits_hash(model: nn.Module, variables: Mapping[str, Any], size: int) -> str:
    return hashlib.sha256(logits(model, variables, images_of(16, 7, size)).tobytes()).hexdigest()


def print_logits_hashes(*folders: str) -> None:
    """Prints {task: hash of its logits} of two pools, of the tiny model and of the transformer."""
    found = {}
    for folder, (model, size) in zip(
        folders, ((TinyModel(), 8), (models.create("vit_nano4", 3), 12)), strict=True
    ):
        pool = cwps.Pool.open(folder)
        for name in pool.tasks:
            found[name] = logits_hash(pool.model(name, model), pool.effective(name), size)
    print(json.dumps(found))


assert {method.name for method in LEARNED.values()} == set(METHODS)
