"""A pool, and tasks to learn, without pre-training: random weights, random images."""

import argparse
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from measurement import seconds_of
from turn import CLASSES, random_variables, share_open

from cwps_jax.core import budgets
from cwps_jax.core.channels import Layout
from cwps_jax.core.mixing import mix
from cwps_jax.core.trees import Tree, map_with_path
from cwps_jax.data.task import TaskData
from cwps_jax.learn import learn_task, make_trainer, train_task
from cwps_jax.methods import Cwps, channels
from cwps_jax.models import create
from cwps_jax.modules import channel_layout
from cwps_jax.settings import TrainConfig
from cwps_jax.store.pool import PRETRAINED, Pool
from cwps_jax.train.step import apply_model

BUDGET = 0.4  # of a task that is learned
FAMILY_SEED = 10_000  # the first of the families', beyond all tasks'


@dataclasses.dataclass(frozen=True)
class Setting:
    """A backbone with random weights and a batch of random images, as the flags of `model_parser` ask.

    Attributes:
        model: the backbone, with a head of `CLASSES` outputs.
        layout: its channels.
        variables: its weights, on the host.
        images: float32 (batch, size, size, 3), on the host.
    """

    model: nn.Module
    layout: Layout
    variables: dict[str, Any]
    images: np.ndarray

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Self:
        """Returns the setting of `arguments`: its `backbone`, `dtype`, `size` and `batch`."""
        model = create(arguments.backbone, CLASSES, dtype=jnp.dtype(arguments.dtype))
        shape = (arguments.size, arguments.size, 3)
        example = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        rng = np.random.default_rng(0)
        variables = random_variables(model, example, rng)
        images = rng.normal(size=(arguments.batch, *shape)).astype(np.float32)
        return cls(model, channel_layout(model, example), variables, images)

    def forward(self, variables: Any, images: Any) -> jax.Array:
        """Returns logits; traced."""
        other = {name: tree for name, tree in variables.items() if name != "params"}
        return apply_model(self.model, variables["params"], other, images, train=False)


def stored_pool(
    folder: pathlib.Path,
    variables: dict[str, Any],
    layout: Layout,
    tasks: int,
    active: float,
    families: int = 0,
    bits: int = 32,
    byte_budget: float = 0.0,
) -> Pool:
    """Returns a pool of tasks that each own the same share of every layer, moved at random by a tenth.

    Args:
        folder: where.
        variables: of the pre-trained model.
        layout: its layout.
        tasks: how many.
        active: the share.
        families: of tasks, in turn, whose changes are `related`; 0 for changes of their own.
        bits, byte_budget: in which they are stored, see the config's `row_bits`.
    """
    record = {"tasks": tasks, "active": active, "families": families}
    pool = Pool.create(folder, variables, layout, record=record)
    other = {name: tree for name, tree in variables.items() if name != "params"}
    for number in range(tasks):
        rng = np.random.default_rng(number)
        gates = budgets.harden(share_open(layout, active, rng), layout, 1.0)
        child = moved(variables["params"], rng)
        if families:
            child = related(variables["params"], child, number % families)
        params = jax.device_get(mix(variables["params"], child, gates))
        if bits == 32:
            pool.add(f"task{number}", params, other, jax.device_get(gates), {}, (PRETRAINED,), {})
            continue
        models = pool.pooled().models
        stored = channels.store_channels(layout, params, other, jax.device_get(gates), {}, models)
        pool.add_stored(f"task{number}", Cwps(), pool.coded(stored, bits, byte_budget), {})
    return pool


def moved(params: Tree, rng: np.random.Generator) -> dict[str, Any]:
    """Returns parameters with noise of a tenth of each leaf's deviation."""

    def move(path: str, leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        return leaf + np.float32(0.1 * (leaf.std() or 1)) * rng.standard_normal(leaf.shape, np.float32)

    return map_with_path(move, params)


def related(params: Tree, own: Tree, family: int) -> dict[str, Any]:
    """Returns parameters whose change shares half of its variance with all others of a family.

    Args:
        params: of the pre-trained model.
        own: `moved` from there.
        family: its number.
    """
    common = moved(params, np.random.default_rng(FAMILY_SEED + family))
    return jax.tree.map(
        lambda start, one, two: start + np.float32(0.714) * (one - start) + np.float32(0.7) * (two - start),
        params,
        own,
        common,
    )


def random_task(size: int, items: int, classes: int, seed: int) -> TaskData:
    """Returns a task of random images whose mean brightness tells the class."""
    rng = np.random.default_rng(seed)

    def split(count: int) -> dict[str, np.ndarray]:
        label = np.arange(count, dtype=np.int32) % classes
        image = rng.normal(label[:, None, None, None] / classes, 1, (count, size, size, 3))
        real = np.full(count, classes, np.int32)  # of a head that has more
        return {"image": image.astype(np.float32), "label": label, "classes": real}

    return TaskData(split(items), split(classes), split(classes), classes)


def learner(folder: pathlib.Path, arguments: argparse.Namespace) -> Callable[..., float]:
    """Returns a function that learns random tasks into one pool by one trainer, and gives their seconds.

    It takes a name, items, classes, and `method` and `store`. All tasks share compiled steps, with a head of
    `CLASSES` outputs of which a task uses its own number.
    """
    config = TrainConfig(
        epochs=arguments.epochs,
        batch_size=arguments.batch,
        learning_rate=1e-3,
        budget=BUDGET,
        norm_batches=1,
    )

    def model_of(classes: int) -> Any:
        return create(arguments.backbone, classes, dtype=jnp.dtype(arguments.dtype))

    widest = random_task(arguments.size, arguments.batch, CLASSES, 0)
    trainer = make_trainer(model_of(CLASSES), widest, config=config)
    variables = random_variables(trainer.model, trainer.example, np.random.default_rng(0))
    pool = Pool.create(folder / "pool", variables, trainer.layout)

    def learn(name: str, items: int, classes: int, method: str = "cwps", store: bool = True) -> float:
        data, model = random_task(arguments.size, items, classes, seed=items), model_of(classes)
        settings = dataclasses.replace(config, method=method)
        if store:
            return seconds_of(lambda: learn_task(pool, name, model, data, config=settings, trainer=trainer))
        return seconds_of(lambda: train_task(pool, model, data, settings, trainer))

    return learn


class CountCompilations:
    """Counts the programs that XLA compiles, or reads from the persistent cache, inside a `with`.

    Attributes:
        names: of the programs so far, "jit(step)" for a function `step`.
    """

    def __init__(self) -> None:
        self.names: list[str] = []

    @property
    def count(self) -> int:
        """How many they are."""
        return len(self.names)

    def __enter__(self) -> Self:
        jax.monitoring.register_event_duration_secs_listener(self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._heard)

    def _heard(self, event: str, seconds: float, *, fun_name: str = "", **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.names.append(fun_name)
