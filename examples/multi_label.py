"""Several yes-or-no answers for each image: a loss and a metric over a vector of labels.

Command:  python examples/multi_label.py        (needs cwps_jax[demo]; some seconds on a CPU)
Data:     embedded, scikit-learn's digits; each is asked: is it even, is it above four, does it have a loop?
"""

import pathlib
import tempfile

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import cwps_jax as cwps


class Net(nn.Module):
    """Two convolutions and a head with one output for each question."""

    questions: int

    @nn.compact
    def __call__(self, images):
        """Returns logits (batch, questions)."""
        for features in (16, 32):
            images = nn.relu(nn.Conv(features, (3, 3), strides=2)(images))
        return nn.Dense(self.questions, name="head")(images.reshape(len(images), -1))


def loss(logits, batch):
    """Binary cross-entropy, averaged over the questions: one value for each image."""
    return optax.sigmoid_binary_cross_entropy(logits, batch["label"]).mean(axis=1)


def share_right(logits, batch):
    """Returns the share of an image's questions that are answered rightly."""
    return jnp.mean((logits > 0) == (batch["label"] > 0.5), axis=1)


images, digits = load_digits(return_X_y=True)
images = (images.reshape(-1, 8, 8, 1) / 8 - 1).astype(np.float32)
answers = np.stack([digits % 2 == 0, digits > 4, np.isin(digits, (0, 6, 8, 9))], axis=1).astype(np.float32)
train, test = ({"image": images[part], "label": answers[part]} for part in (slice(1400), slice(1400, None)))
data = cwps.TaskData.from_arrays(train, test)

model = Net(questions=3)
config = cwps.TrainConfig(epochs=8, budget=0.5, optimizer="adamw", learning_rate=0.01)
trainer = cwps.make_trainer(model, data, loss=loss, metric=share_right, config=config)
# Random weights, so that the example needs no download; see cwps.load_backbone for published ones.
pool = cwps.Pool.create(
    pathlib.Path(tempfile.mkdtemp(), "pool"), trainer.new_variables(seed=0), trainer.layout
)
learned = cwps.learn_task(pool, "questions", model, data, config=config, trainer=trainer)
print(f"answered rightly: {learned.metric:.1%}, kept: {learned.params_ratio:.1%} of a backbone")

logits = cwps.predict(pool, "questions", test["image"][:3], model=model).logits
print("even, above four, with a loop:", (logits > 0).tolist(), "for", digits[1400:1403].tolist())
