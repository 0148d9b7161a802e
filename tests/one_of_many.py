"""One of two processes with four devices each: several checks in one, so that the start is paid once.

``python tests/one_of_many.py PORT PROCESS FOLDER`` leaves arrays and the errors' lines of each process there.
With "alone" for a process it is the only one, of eight devices and with a coordinator, and leaves less.
"""

import itertools
import json
import os
import pathlib
import sys

import conftest  # the environment, before JAX touches a device

if __name__ == "__main__":  # not where it is only looked through for doctests
    DEVICES = 8 if sys.argv[2] == "alone" else 4
    os.environ["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={DEVICES}"  # the last one counts

import jax
import jax.numpy as jnp
import numpy as np
import searched
import stages

from cwps_jax import CwpsError, distributed, methods, modules
from cwps_jax.errors import Preempted
from cwps_jax.methods.method import Stored
from cwps_jax.parallel import Parallel
from cwps_jax.store import Pool
from cwps_jax.train.evaluation import Predictor
from cwps_jax.train.saves import Saves, Saving

ITEMS = 21  # neither devices nor batches divide them


def line_of(action):
    try:
        action()
    except CwpsError as error:
        return str(error)
    return ""


def check(process: int | str, folder: pathlib.Path) -> None:
    model = conftest.TinyModel()
    layout = modules.channel_layout(model, jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32))
    variables = jax.device_get(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))
    parallel = Parallel()
    trained, recording = stages.run_stages(model, layout, variables, parallel)
    images = np.random.default_rng(0).standard_normal((ITEMS, 8, 8, 1)).astype(np.float32)
    found = {
        "fetched": recording.fetched,
        "trained": (trained.params, trained.other),
        "gates": trained.gates,
        "sources": trained.finished.moment.found["sources"],
        "logits": Predictor(model, parallel)(variables, {"image": images}, 6),
    }
    for name, tree in found.items():
        np.savez(folder / f"{name}-{process}.npz", *jax.tree.leaves(tree))

    if process == "alone":
        return
    spread = Parallel(shard=(("*", "split"),))
    _, recording = stages.run_stages(model, layout, variables, spread)
    np.savez(folder / f"spread-{process}.npz", *jax.tree.leaves(recording.fetched))

    # The search: each process compares the rows of its owners.
    sketches = {}
    for search in searched.OPTIONS:
        rng = np.random.default_rng(0)
        stored = searched.SharedRows(rng, 12, search)
        found = searched.find(stored.child(rng), stored.stored, search)
        np.savez(folder / f"{searched.names(search)}-{process}.npz", *jax.tree.leaves(found))
        sketches[searched.names(search)] = sorted(stored.sketches)
    (folder / f"sketches-{process}.json").write_text(json.dumps(sketches))

    # One of the two is asked to stop, in the middle of a stage.
    asked = itertools.count()

    def saves(stopping=lambda: False, minutes=1e9):
        saving = Saving(folder / "saves", minutes, stopping)
        return Saves(saving, "birds", {}, {}, lambda before, now: "")

    def stopped(stopping):
        try:
            stages.run_stages(model, layout, variables, parallel, saves=saves(stopping))
        except Preempted as end:
            return str(end)

    where = stopped(lambda: process == 1 and next(asked) >= 2)
    went_on, _ = stages.run_stages(
        model, layout, variables, parallel, saves=saves(minutes=1e-9)
    )  # saved all the time, between stages too
    np.savez(folder / f"went_on-{process}.npz", *jax.tree.leaves((went_on.params, went_on.other)))

    # The pool: made, locked and written by process 0, seen by both.
    pool = Pool.create(folder / "pool", variables, layout)
    with pool.learning("a"):
        stored = Stored({"params": trained.params, "other": trained.other})
        told = [pool.add_stored("a", methods.Finetune(), stored, {}).name]
    distributed.SEEN_SECONDS = 1
    told += [
        line_of(lambda: Pool.create(folder / "pool", variables, layout)),
        line_of(lambda: Pool.create(folder / f"pool-{process}", variables, layout)),
        line_of(lambda: distributed.agree("at the start", {"config.seed": process, "the code": "same"})),
        line_of(lambda: parallel.split({"image": np.zeros((6, 2))})),
        line_of(lambda: Parallel("pmap")),
    ]
    told += [distributed.largest(process == 1), distributed.largest(False), where]
    (folder / f"told-{process}.json").write_text(json.dumps(told))
    distributed.stop()


if __name__ == "__main__":
    port, folder = int(sys.argv[1]), pathlib.Path(sys.argv[3])
    if sys.argv[2] == "alone":
        distributed.start(f"localhost:{port}", 1, 0, seconds=120)
        check("alone", folder)
    else:
        distributed.start(f"localhost:{port}", 2, int(sys.argv[2]), seconds=120)
        check(int(sys.argv[2]), folder)
