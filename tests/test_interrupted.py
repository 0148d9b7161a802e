"""Ctrl-C in learn_task, which a notebook's stop button sends too: the pool is whole, and it goes on."""

import signal

import chex
import pytest
from conftest import TinyModel, random_task

import cwps_jax as cwps
from cwps_jax.train.saves import Saving

CONFIG = cwps.TrainConfig(epochs=4, batch_size=16, learning_rate=0.05, budget=0.6)


@pytest.mark.parametrize("saved", [False, True])
def test_an_interrupt_leaves_the_pool_whole_and_the_same_call_goes_on(
    tmp_path, tiny_variables, tiny_layout, saved
):
    said, seen = [], []
    saving = Saving(tmp_path / "saves", minutes=1e-9, say=lambda line, epochs: said.append(epochs))
    trainer = cwps.make_trainer(TinyModel(), random_task(), config=CONFIG)

    def learn(pool, observe):
        options = {"config": CONFIG, "trainer": trainer, "checkpoints": saving if saved else None}
        return cwps.learn_task(pool, "birds", TinyModel(), random_task(), observe=observe, **options)

    def interrupt(progress):
        seen.append(progress.epoch)
        if progress.epoch == 2:
            signal.raise_signal(signal.SIGINT)

    pools = [cwps.Pool.create(tmp_path / name, tiny_variables, tiny_layout) for name in ("stopped", "whole")]
    with pytest.raises(KeyboardInterrupt):
        learn(pools[0], interrupt)
    assert seen == [1, 2]
    reopened = cwps.Pool.open(tmp_path / "stopped")
    assert reopened.tasks == () and reopened.verify() == [] and reopened.compact() == ()
    again = []
    gone_on = learn(pools[0], lambda progress: again.append(progress.epoch))
    assert len(said) == saved  # where it goes on; how far the last save is depends on the disk
    assert again == list(range(again[0], 5)) and again[0] == 1 + sum(said)
    assert not saved or not list((tmp_path / "saves").iterdir())
    whole = cwps.learn_task(pools[1], "birds", TinyModel(), random_task(), config=CONFIG, trainer=trainer)
    chex.assert_trees_all_equal(gone_on.variables, whole.variables)
