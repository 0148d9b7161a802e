"""Classes of very different size: a loss that weighs each image by how rare its class is.

Command:  python examples/class_weights.py        (needs cwps_jax[demo]; some seconds on a CPU)
Data:     embedded, scikit-learn's digits, of which only a twelfth of the odd ones is left for training
"""

import pathlib
import tempfile

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

import cwps_jax as cwps


class Net(nn.Module):
    """Two convolutions and a head."""

    classes: int

    @nn.compact
    def __call__(self, images):
        """Returns logits (batch, classes)."""
        for features in (8, 16):
            images = nn.relu(nn.Conv(features, (3, 3), strides=2)(images))
        return nn.Dense(self.classes, name="head")(images.reshape(len(images), -1))


images, digits = load_digits(return_X_y=True)
images, digits = (images.reshape(-1, 8, 8, 1) / 8 - 1).astype(np.float32), digits.astype(np.int32)
number = np.arange(len(digits))
kept = (number < 1200) & ((digits % 2 == 0) | (number % 12 == 0))  # the test data stay balanced
train, test = ({"image": images[part], "label": digits[part]} for part in (kept, number >= 1200))
data = cwps.TaskData.from_arrays(train, test, classes=10)

counts = np.bincount(train["label"], minlength=10)
weights = jnp.asarray(counts.sum() / (10 * counts), jnp.float32)


def weighted_cross_entropy(logits, batch):
    """Cross-entropy times the weight of the image's class: one value for each image."""
    return weights[batch["label"]] * cwps.cross_entropy(logits, batch)


model = Net(classes=10)
config = cwps.TrainConfig(epochs=8, batch_size=32, budget=0.5, optimizer="adamw", learning_rate=0.01)
results = {}
for name, loss in (("plain", cwps.cross_entropy), ("weighted", weighted_cross_entropy)):
    trainer = cwps.make_trainer(model, data, loss=loss, config=config)
    # Random weights, so that the example needs no download; see cwps.load_backbone for published ones.
    pool = cwps.Pool.create(
        pathlib.Path(tempfile.mkdtemp(), "pool"), trainer.new_variables(seed=0), trainer.layout
    )
    learned = cwps.learn_task(pool, name, model, data, config=config, trainer=trainer)
    found = cwps.predict(pool, name, test["image"], model=model).logits.argmax(axis=1)
    right = found == test["label"]
    rare = test["label"] % 2 == 1
    results[name] = (learned.metric, right[rare].mean())
    print(f"{name}: accuracy {learned.metric:.1%}, of the rare classes {right[rare].mean():.1%}")
