"""A task's training is stopped anywhere, and the same call goes on as if nothing had happened, to the bit."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from conftest import TinyModel

import cwps_jax as cwps
from cwps_jax.errors import Preempted
from cwps_jax.parallel import Parallel
from cwps_jax.train.saves import Saving

METHOD = cwps.methods.Cwps(score_learning_rate=0.05)
CONFIG = cwps.TrainConfig(method=METHOD, epochs=6, batch_size=16, learning_rate=0.05, budget=0.6)
STEPS = 36  # six an epoch
EVERYTHING = dataclasses.replace(CONFIG, ema=0.9, row_bits=4, rounded_share=0.2, head_share=0.2, epochs=8)
CONFIGS = {
    "cwps": (CONFIG, STEPS),
    "everything": (EVERYTHING, 48),
    "packnet": (dataclasses.replace(CONFIG, method="packnet", budget=1.0), STEPS),
    "atlas": (dataclasses.replace(CONFIG, method="atlas", budget=1.0), STEPS),
    "lora": (dataclasses.replace(CONFIG, method="lora", budget=1.0, optimizer="adamw"), STEPS),
    "pmap": (dataclasses.replace(CONFIG, parallel="pmap"), STEPS),
}


def images_of(count: int, seed: int) -> np.ndarray:
    images = np.random.default_rng(seed).normal(size=(count, 8, 8, 1)).astype(np.float32)
    for index in range(count):
        kind = 2 * (index % 3)
        images[index, kind : kind + 4, kind : kind + 4] += 1
    return images


def task(**changes) -> cwps.TaskData:
    splits = [{"image": images_of(n, n), "label": np.arange(n, dtype=np.int32) % 3} for n in (96, 24)]
    return cwps.TaskData.from_arrays({**splits[0], **changes}, splits[1], classes=3)


class StopAfter:
    """Says so after that many questions, one a step and one a stage."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


@dataclasses.dataclass
class Bench:
    """A pool with one task, and what learns another."""

    folder: object
    variables: dict
    layout: cwps.Layout
    devices: int

    def pool(self, name: str) -> cwps.Pool:
        """Returns a new pool with one task."""
        first = self.folder / "first"
        if not first.exists():
            pool = cwps.Pool.create(first, self.variables, self.layout)
            config = dataclasses.replace(CONFIG, seed=1, epochs=3)
            cwps.learn_task(pool, "before", TinyModel(), task(), config=config, trainer=self.trainer())
        shutil.copytree(first, self.folder / name)
        return cwps.Pool.open(self.folder / name)

    def trainer(self, parallel: str = "jit") -> cwps.Trainer:
        """A new one, as a new process has."""
        example = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
        return cwps.Trainer(
            TinyModel(),
            self.layout,
            example,
            parallel=Parallel(parallel, devices=tuple(jax.devices()[: self.devices])),
        )

    def learn(self, pool, config, observe=lambda progress: None, data=None, name="birds", **saving):
        checkpoints = saving and Saving(**{"folder": self.folder / "saves", "minutes": 1e9, **saving})
        return cwps.learn_task(
            pool,
            name,
            TinyModel(),
            data or task(),
            config=config,
            trainer=self.trainer(config.parallel),
            observe=observe,
            checkpoints=checkpoints or None,
        )


@pytest.fixture
def single(tmp_path, tiny_variables, tiny_layout) -> Bench:
    return Bench(tmp_path, tiny_variables, tiny_layout, 1)


def stored(pool: cwps.Pool) -> dict:
    """Returns the hashes of all trees of a pool, and what of its records is no time."""
    pool.refresh()
    times = {"seconds", "learned_with"}
    return {
        version.name: (
            version.own_sha256,
            version.rows_sha256,
            {key: value for key, value in version.record.items() if key not in times},
        )
        for version in pool.index.versions
    }


def rows_of(progress: list) -> list:
    """Returns epochs without their times."""
    return [dataclasses.replace(one, seconds_per_epoch=0.0) for one in progress]


SLOW = [("everything", 1), ("cwps", 8), ("pmap", 8), ("packnet", 1), ("atlas", 8), ("lora", 8)]


@pytest.mark.parametrize(
    "name, devices",
    [("cwps", 1), ("everything", 8), *(pytest.param(*one, marks=pytest.mark.slow) for one in SLOW)],
)
def test_a_training_that_is_stopped_again_and_again_ends_the_same_to_the_bit(
    tmp_path, tiny_variables, tiny_layout, name, devices
):
    bench = Bench(tmp_path, tiny_variables, tiny_layout, devices)
    config, steps = CONFIGS[name]
    whole, stopped, expected, seen, said = bench.pool("whole"), bench.pool("stopped"), [], [], []
    bench.learn(whole, config, expected.append)
    rng, stops = np.random.default_rng(len(name) + devices), 0
    while "birds" not in stopped.tasks:
        stop = StopAfter(int(rng.integers(3, steps // 4)))
        try:
            bench.learn(
                stopped, config, seen.append, stopping=stop, say=lambda line, epochs: said.append(line)
            )
        except Preempted as end:
            stops += 1
            assert "birds/" in str(end) and "and saved in" in str(end)
    assert stops >= 3 and len(said) == stops
    assert stored(stopped) == stored(whole)
    assert rows_of(seen) == rows_of(expected)
    assert not list((bench.folder / "saves").iterdir())  # the task is in the pool
