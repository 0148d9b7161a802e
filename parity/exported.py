"""Compares every task of a pool, exported and read by plain safetensors into PyTorch, with the pool.

    python -m parity.exported runs/digits/pool

Logits of the task's own test images may be 1e-4 apart. Backbones are those of `parity.modules.SmallResNet`.
"""

import argparse
import functools
import json
import pathlib
import sys
import tempfile

import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file
from torch import nn

import cwps_jax as cwps
from cwps_jax import data, models
from cwps_jax.settings import DataConfig
from cwps_jax.train.evaluation import Predictor
from parity.modules import SmallResNet
from parity.reference import load_state, logits

TOLERANCE = 1e-4
TWINS = {
    "resnet8": functools.partial(SmallResNet, blocks=1, projection=True),
    **{
        f"resnet{6 * blocks + 2}_cifar": functools.partial(SmallResNet, blocks=blocks)
        for blocks in (3, 5, 7, 9)
    },
}


def main() -> None:
    """Prints and writes a line for each task; exits with 1 where one is too far apart."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pool", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, help="a JSON file of what was found")
    given = parser.parse_args()
    pool = cwps.Pool.open(given.pool)
    if pool.index.backbone not in TWINS:
        sys.exit(f"{pool.folder}: no PyTorch model here for {pool.index.backbone}; one of {', '.join(TWINS)}")
    rows = []
    for task in pool:
        rows.append({"task": task, **compared(pool, task)})
        print("{task:12} {classes:3} classes, {images:4} images: {difference:.1e}".format(**rows[-1]))
    if given.out:
        tolerance = {"backbone": pool.index.backbone, "tolerance": TOLERANCE}
        given.out.write_text(json.dumps({**tolerance, "tasks": rows}, indent=1) + "\n")
    if any(row["difference"] > TOLERANCE for row in rows):
        sys.exit(1)


def compared(pool: cwps.Pool, task: str) -> dict[str, float | int]:
    """Returns how far apart the logits of a task's test images are, at most."""
    told = pool.version(task).record["learned_with"]
    test = data.load(DataConfig(**told["images"]), told["task"], seed=told["config"]["seed"]).test
    images = test.preparation.normalise(jnp.asarray(test.read(np.arange(len(test)), None)["image"]))
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "task.safetensors"
        cwps.export(pool, task, file)
        arrays = load_file(file)
        with safe_open(file, "numpy") as stored:
            names = json.loads(stored.metadata()["class_names"])
    twin: nn.Module = TWINS[pool.index.backbone](channels=images.shape[-1], num_classes=len(names))
    load_state(twin, arrays)
    theirs = logits(twin.eval(), np.array(images))
    ours = Predictor(models.create(pool.index.backbone, len(names)))(pool.effective(task), test, 64)
    return {"classes": len(names), "images": len(images), "difference": float(np.abs(ours - theirs).max())}


if __name__ == "__main__":
    main()
