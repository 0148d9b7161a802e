"""One task in all stages of cwps, 20 steps each, from one state: by whatever devices do it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from stored_models import whole_models

from cwps_jax import TrainConfig, Trainer, methods
from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.methods.pooled import Pooled
from cwps_jax.parallel import Parallel

STEPS = 20  # of each stage: 4 epochs of 5
CONFIG = TrainConfig(
    method=methods.Cwps(
        lambda_=0.05, score_learning_rate=0.05, warm_up_share=1 / 3, hard_share=1 / 3, search_z=0.0
    ),
    epochs=12,
    batch_size=16,
    learning_rate=0.05,
    weight_decay=0.01,
    norm_batches=3,
)


@dataclasses.dataclass(frozen=True)
class Recording(Parallel):
    """Keeps all that was fetched and compiled."""

    fetched: list = dataclasses.field(default_factory=list)
    compiled: list = dataclasses.field(default_factory=list)

    def fetch(self, tree, **options):
        self.fetched.append(super().fetch(tree, **options))
        return self.fetched[-1]

    def compile(self, function, **options):
        self.compiled.append((function.__name__, super().compile(function, **options)))
        return self.compiled[-1][1]


def moved(tree, scale, seed):
    """Returns the tree with normal noise of that scale on every leaf."""
    rng = np.random.default_rng(seed)
    return unflatten(
        {
            path: leaf + scale * rng.standard_normal(leaf.shape).astype(np.float32)
            for path, leaf in flatten(tree).items()
        }
    )


def run_stages(model, layout, variables, parallel, config=CONFIG, saves=None):
    """Returns what the trainer returned, and the `Recording` of it: losses, states between stages, norms."""
    rng = np.random.default_rng(0)
    label = np.arange(80, dtype=np.int32) % 3
    images = rng.standard_normal((80, 8, 8, 1)) * (1 + label[:, None, None, None])
    split = {"image": images.astype(np.float32), "label": label}
    models = whole_models(
        layout, [flatten(variables["params"]), flatten(moved(variables["params"], 0.02, 1))]
    )
    recording = Recording(parallel.mode, parallel.devices, parallel.shard)
    example = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    trainer = Trainer(model, layout, example, parallel=recording)
    pooled = Pooled(models, ("pretrained", "a@1"))
    return trainer.train(variables, split, config, pooled, saves=saves), recording
