"""Learns a task as one of two processes, of which the second needs longer than Gloo waits to compile it.

`tests/test_distributed.py` runs it: `late_process.py PORT PROCESS FOLDER`.
"""

import pathlib
import sys
import time

import jax
import jax.numpy as jnp
from conftest import TinyModel, random_task

import cwps_jax as cwps
from cwps_jax import distributed
from cwps_jax.modules import channel_layout
from cwps_jax.train.objectives import cross_entropy

LATER = 35  # seconds; Gloo waits 30 for the first exchange


def learn(process: int, folder: pathlib.Path) -> None:
    def late(outputs, batch):
        time.sleep(LATER * process * (late.traced == 0))
        late.traced += 1
        return cross_entropy(outputs, batch)

    late.traced = 0
    model, example = TinyModel(), jnp.zeros((1, 8, 8, 1))
    variables = jax.device_get(model.init(jax.random.key(0), example))
    pool = cwps.Pool.create(folder / "pool", variables, channel_layout(model, example))
    config = cwps.TrainConfig(method="finetune", epochs=1, batch_size=32)
    task = cwps.learn_task(pool, "noise", model, random_task(), config=config, loss=late)
    print(task.metric)
    distributed.stop()


if __name__ == "__main__":
    distributed.start(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]), seconds=120)
    learn(int(sys.argv[2]), pathlib.Path(sys.argv[3]))
