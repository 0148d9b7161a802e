"""`Turn`: one stage's training step with a state of its own, ready to be timed or only compiled."""

import argparse
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measurement import seconds_of

from cwps_jax.core.channels import Layout
from cwps_jax.core.masks import init_scores
from cwps_jax.core.trees import select, unflatten
from cwps_jax.data.preparation import Preparation
from cwps_jax.data.split import ArraySplit
from cwps_jax.methods import Cwps, Finetune, Lora, Taps
from cwps_jax.methods.method import Begun
from cwps_jax.models import create
from cwps_jax.modules import channel_layout
from cwps_jax.parallel import Compiled
from cwps_jax.settings import TrainConfig
from cwps_jax.train.course import Course
from cwps_jax.train.state import make_plan
from cwps_jax.train.trainer import NO_POOL, Trainer

CLASSES = 10
ACTIVE = 0.3  # share of open channels in the hard step
OTHERS = {method.name: method for method in (Finetune(), Taps(), Lora())}


class Turn:
    """One kind of step with its own state.

    Args:
        stage: a stage of cwps, "soft" or "hard", or the one stage of a method of `OTHERS`.
        arguments: with `backbone` and `dtype`.
        size, batch: pixels of an image's side, images a step.
        active: share of each layer's channels that are open in the hard step.
        method: cwps with settings of its own.
        training: fields of `TrainConfig`.
    """

    def __init__(
        self,
        stage: str,
        arguments: argparse.Namespace,
        size: int,
        batch: int,
        active: float = ACTIVE,
        method: Cwps = Cwps(),
        **training: Any,
    ) -> None:
        model = create(arguments.backbone, CLASSES, dtype=jnp.dtype(arguments.dtype))
        shape = (batch, size, size, 3)
        example = jax.ShapeDtypeStruct((1, *shape[1:]), jnp.float32)
        layout = channel_layout(model, example)
        trained_by = OTHERS.get(stage, method)
        config = TrainConfig(method=trained_by, weight_decay=1e-4, **training)
        trainer = Trainer(model, layout, example)
        begun = {one.name: one for one in trained_by.stages(trainer.network, config)}[stage]
        rng = np.random.default_rng(0)
        variables = random_variables(model, example, rng)
        own, frozen = (
            {"params": variables["params"]},
            {"parent": select(variables["params"], layout.layer_paths)},
        )
        if stage == "soft":  # without a search: every parent channel is the pre-trained one
            chosen = Begun({**own, "masks": jax.device_get(init_scores(layout))}, frozen)
            begun = dataclasses.replace(begun, begin=lambda moment: chosen)
        elif stage == "hard":
            own["masks"] = share_open(layout, active, rng)
        # The trainer's own way into a stage, so that what is timed is what a user's task runs.
        self.parallel, self.layout = trainer.parallel, layout
        course = Course(
            trainer.network, trained_by, (begun,), variables, ArraySplit({}), config, NO_POOL, 100
        )
        start = course.beginning()
        before = dataclasses.replace(start, state=dataclasses.replace(start.state, own=own), frozen=frozen)
        _, self.state, self.frozen = trainer.begin(course, before)
        plan = make_plan(config, begun, first_epoch=0, epochs=30, steps_per_epoch=100)
        self.plan = self.parallel.replicate(plan)
        self.batch = self.parallel.split(
            {
                "image": rng.normal(size=shape).astype(np.float32),
                "label": rng.integers(0, CLASSES, batch).astype(np.int32),
            }
        )
        self.step: Compiled = trainer.programs.step(begun, trained_by, config, False, Preparation())

    def prepare(self) -> Compiled:
        """Compiles the step without running it, and returns it."""
        self.step.prepare(self.state, self.frozen, self.plan, self.batch)
        return self.step

    def run(self, steps: int = 1) -> float:
        """Takes steps, waits for the last one alone, and returns the seconds of one."""

        def take() -> None:
            for _ in range(steps):
                self.state, metrics = self.step(self.state, self.frozen, self.plan, self.batch)
            jax.block_until_ready((self.state, metrics))

        return seconds_of(take) / steps

    def channel_optimizer_bytes(self) -> int:
        """Returns the bytes of optimizer state that belong to layers with output channels."""
        paths, total = set(self.layout.layer_paths), 0
        for keys, leaf in jax.tree_util.tree_leaves_with_path(self.state.optimizers["params"]):
            path = "/".join(key.key for key in keys if isinstance(key, jax.tree_util.DictKey))
            total += leaf.nbytes * (path in paths)
        return total


def random_variables(model: Any, example: jax.ShapeDtypeStruct, rng: np.random.Generator) -> dict[str, Any]:
    """Returns variables of a model without running its initialisers: small random parameters, ones else."""
    shapes = dict(jax.eval_shape(model.init, jax.random.key(0), example))
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.05, leaf.shape).astype(leaf.dtype), shapes["params"])
    rest = {name: tree for name, tree in shapes.items() if name != "params"}
    return {"params": params, **jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), rest)}


def share_open(layout: Layout, active: float, rng: np.random.Generator) -> dict[str, Any]:
    """Returns scores of which the same share of every layer's channels, drawn at random, is above zero."""
    scores = {}
    for layer in layout.layers:
        order = rng.permutation(layer.channels).reshape(layer.gate_shape)
        scores[layer.path] = np.where(order < round(active * layer.channels), 1, -1).astype(np.float32)
    return unflatten(scores)
