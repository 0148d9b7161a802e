"""A task's training is stopped anywhere, and the same call goes on as if nothing had happened, to the bit."""

import dataclasses
import os
import shutil

import jax
import numpy as np
import pytest
from conftest import TinyModel
from rich.console import Console

import cwps_jax as cwps
from cwps_jax import run
from cwps_jax.config import run_config
from cwps_jax.errors import Preempted
from cwps_jax.parallel import Parallel
from cwps_jax.store.lock import locked
from cwps_jax.train.joined import parted
from cwps_jax.train.saves import Saves, Saving

METHOD = cwps.methods.Cwps(score_learning_rate=0.05, warm_up_share=0.25, hard_share=0.25)
CONFIG = cwps.TrainConfig(method=METHOD, epochs=6, batch_size=16, learning_rate=0.05, budget=0.6)
STEPS = 30  # five an epoch
PLAIN = dataclasses.replace(CONFIG, method="finetune", budget=1.0)
EVERYTHING = dataclasses.replace(CONFIG, ema=0.9, row_bits=4, rounded_share=0.2, head_share=0.2, epochs=8)
CONFIGS = {
    "cwps": (CONFIG, STEPS),
    "everything": (EVERYTHING, 40),
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
    """Says so after that many questions, one a step and one per stage."""

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


def stopped_at(bench: Bench, pool: cwps.Pool, steps: int, config=CONFIG, **options) -> None:
    with pytest.raises(Preempted):
        bench.learn(pool, config, stopping=StopAfter(steps), **options)


def test_what_it_is_learned_with_has_to_be_the_same_and_nothing_is_lost_where_it_is_not(single):
    pool = single.pool("pool")
    stopped_at(single, pool, 8, PLAIN)
    saved = sorted((single.folder / "saves").rglob("*"))
    other = dataclasses.replace(PLAIN, learning_rate=0.1)
    with pytest.raises(cwps.CwpsError, match=r"another one: config.learning_rate \(was 0.05, is 0.1\); give"):
        single.learn(pool, other, stopping=lambda: False)
    images = images_of(96, 5)
    with pytest.raises(cwps.CwpsError, match="another one: training data"):
        single.learn(pool, PLAIN, data=task(image=images), stopping=lambda: False)
    moved = {**single.variables, "batch_stats": {"norm": {"mean": np.ones(6), "var": np.ones(6)}}}
    with pytest.raises(cwps.CwpsError, match="another one: pretrained model"):
        single.learn(cwps.Pool.create(single.folder / "o", moved, single.layout), PLAIN, minutes=1.0)
    assert sorted((single.folder / "saves").rglob("*")) == saved
    said = []
    single.learn(pool, PLAIN, say=lambda line, epochs: said.append((line, epochs)))
    (told,) = said
    assert "birds/finetune: goes on in its finetune stage, epoch 2 of 6, after step 4 of 5" in told[0]
    assert told[1] == 1  # epochs that are over


def test_a_task_that_others_have_stored_meanwhile_lets_it_begin_anew(single):
    pool, said = single.pool("pool"), []
    stopped_at(single, pool, 20, PLAIN)
    single.learn(cwps.Pool.open(pool.folder), dataclasses.replace(PLAIN, method="probe"), name="new")
    seen = []
    learned = single.learn(pool, PLAIN, seen.append, say=lambda line, epochs: said.append(line))
    assert said == [
        "birds/finetune: starts again, because the pool has other tasks now than when it was interrupted"
    ]
    assert learned.name == "birds@1" and [one.epoch for one in seen] == [1, 2, 3, 4, 5, 6]


def test_on_other_devices_it_goes_on_and_says_so(tmp_path, tiny_variables, tiny_layout, monkeypatch):
    one = Bench(tmp_path, tiny_variables, tiny_layout, 1)
    pool, said = one.pool("pool"), []
    stopped_at(one, pool, 20)
    monkeypatch.setattr("cwps_jax.train.saves._devices", lambda: "1 x other")
    eight = dataclasses.replace(one, devices=8)
    eight.learn(pool, CONFIG, say=lambda line, epochs: said.append(line))
    assert said[1] == (
        "birds/cwps: it was trained on 8 x cpu, and goes on on 1 x other: the result differs in its last bits"
    )


def test_of_damaged_saves_the_newest_whole_one_is_used(single):
    whole = single.pool("whole")
    single.learn(whole, PLAIN)
    stopped_at(single, single.pool("pool"), 8, PLAIN)
    stopped_at(single, cwps.Pool.open(single.folder / "pool"), 10, PLAIN)
    for damage in ("truncated", "no description", "half-written"):
        here = dataclasses.replace(single, folder=single.folder / damage)
        for name in ("pool", "saves"):
            shutil.copytree(single.folder / name, here.folder / name)
        folder, said = here.folder / "saves" / "birds" / "finetune", []
        old, new = sorted((one for one in folder.iterdir() if one.is_dir()), key=lambda one: int(one.name))
        if damage == "half-written":
            new.rename(folder / f"{new.name}.orbax-checkpoint-tmp")
        elif damage == "no description":
            (new / "told" / "metadata").write_text("")
        else:
            for file in (new / "arrays").rglob("d/*"):
                file.write_bytes(file.read_bytes()[:10])
        pool = cwps.Pool.open(here.folder / "pool")
        here.learn(pool, PLAIN, say=lambda line, epochs, said=said: said.append(line))
        epoch, step = divmod(int(old.name), 5)
        assert f"epoch {1 + epoch} of 6, after step {step} of 5" in said[-1]
        assert len(said) == (1 if damage == "half-written" else 2)
        assert "damaged, so that an older one is used" in said[0] or damage == "half-written"
        assert stored(pool) == stored(whole)


def test_saves_come_with_time_and_with_the_ends_of_stages_and_few_are_kept(single, monkeypatch):
    pool, now, saved, save = single.pool("pool"), [0.0], [], Saves.save
    monkeypatch.setattr("cwps_jax.train.saves.time.monotonic", lambda: now[0])

    def recorded(self, course, point):
        saved.append((point.stage, point.steps))
        save(self, course, point)
        self._manager.wait_until_finished()
        assert len(list(self.folder.iterdir())) <= 2

    monkeypatch.setattr(Saves, "save", recorded)

    def observe(progress):
        now[0] += 60  # an epoch takes a minute

    single.learn(pool, PLAIN, observe, minutes=1.5)
    assert saved == [(0, 11), (0, 21), (1, 0)]
    saved.clear()
    single.learn(pool, CONFIG, observe, minutes=100.0, name="short")
    assert saved == []  # none of its stages is worth one
    single.learn(pool, CONFIG, observe, minutes=15.0, name="long")
    assert saved == [(1, 0), (2, 0), (3, 0)]


def test_a_loss_that_is_not_finite_is_seen_before_the_epoch_ends_and_the_last_finite_state_is_kept(
    single, monkeypatch
):
    pool, taken = single.pool("pool"), []
    monkeypatch.setattr("cwps_jax.train.epochs.LOOK", 1)
    diverging = dataclasses.replace(PLAIN, learning_rate=1e30)
    monkeypatch.setattr(Saves, "wanted", lambda self, between_stages=False: True)
    with pytest.raises(FloatingPointError, match="is not finite after training|the loss is .* in epoch 1"):
        single.learn(pool, diverging, minutes=1.0, observe=taken.append)
    assert taken == []  # not even an epoch
    for folder in (single.folder / "saves" / "birds" / "finetune").glob("[0-9]*"):
        assert np.isfinite(np.frombuffer(arrays_of(folder), np.float32)).all()
    pool.refresh()
    assert pool.tasks == ("before",)
    monkeypatch.undo()
    monkeypatch.setattr("cwps_jax.train.epochs.LOOK", 1)
    with pytest.raises(FloatingPointError, match="the loss is .* in epoch 1, step [1-4];"):
        single.learn(pool, diverging, observe=taken.append)


def arrays_of(folder) -> bytes:
    """Returns the bytes of all own trees of a saved point, which are its first arrays."""
    import orbax.checkpoint as ocp

    manager = ocp.CheckpointManager(folder.parent)
    wanted = ocp.args.Composite(arrays=ocp.args.PyTreeRestore(), told=ocp.args.JsonRestore())
    found = manager.restore(int(folder.name), args=wanted)
    return parted(found.arrays["bytes"], found.told["leaves"])[1].tobytes()


def test_a_folder_that_cannot_be_written_is_one_line_and_the_pool_is_whole(single, monkeypatch):
    import orbax.checkpoint as ocp

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    pool = single.pool("pool")
    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    with pytest.raises(
        cwps.CwpsError, match=r"birds/finetune cannot be saved here \(.*No space left"
    ) as caught:
        single.learn(pool, PLAIN, minutes=1e-9)
    assert "\n" not in str(caught.value)
    pool.refresh()
    assert pool.tasks == ("before",) and not pool.verify()


def test_a_second_run_of_a_workdir_is_told_while_the_first_trains_its_pretrained_model(tmp_path):
    values = {"data": "digits", "source": "digits", "source_epochs": 1, "tasks": ("loops",), "epochs": 3}
    config = run_config({**values, "cache_dir": str(tmp_path)})
    with locked(tmp_path / ".pretraining", "this"), pytest.raises(cwps.CwpsError) as caught:
        run.learn(config, tmp_path, Console(quiet=True))
    told = f"{tmp_path}/.pretraining: this run's pre-trained model is being trained by process {os.getpid()};"
    assert str(caught.value) == f"{told} try again when it has ended"
    assert not (tmp_path / "pool").exists()
