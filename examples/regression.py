"""A number for each image instead of a class: by how many degrees is a digit turned?

Command:  python examples/regression.py        (needs cwps_jax[demo]; some seconds on a CPU)
Data:     embedded, scikit-learn's digits, each turned by up to 45 degrees
"""

import pathlib
import tempfile

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import rotate
from sklearn.datasets import load_digits

import cwps_jax as cwps

SCALE = 45.0  # degrees; a network's outputs are learned best around 1


class Net(nn.Module):
    """Two convolutions, a hidden layer, and a head with one output."""

    @nn.compact
    def __call__(self, images):
        """Returns angles (batch, 1), in units of `SCALE`."""
        for features in (16, 32):
            images = nn.relu(nn.Conv(features, (3, 3), strides=2)(images))
        return nn.Dense(1, name="head")(nn.relu(nn.Dense(64)(images.reshape(len(images), -1))))


def squared_error(angles, batch):
    """Returns one value for each image."""
    return (angles[:, 0] - batch["label"]) ** 2


def minus_degrees_off(angles, batch):
    """Returns how many degrees an answer is off, negative, because a metric is better when it is larger."""
    return -SCALE * jnp.abs(angles[:, 0] - batch["label"])


images, _ = load_digits(return_X_y=True)
angles = np.random.default_rng(0).uniform(-SCALE, SCALE, len(images))
turned = [
    rotate(image, angle, reshape=False, order=1)
    for image, angle in zip(images.reshape(-1, 8, 8), angles, strict=True)
]
images = (np.stack(turned)[..., None] / 8 - 1).astype(np.float32)
labels = (angles / SCALE).astype(np.float32)
train, test = ({"image": images[part], "label": labels[part]} for part in (slice(1400), slice(1400, None)))
data = cwps.TaskData.from_arrays(train, test)

model = Net()
config = cwps.TrainConfig(epochs=12, budget=0.5, optimizer="adamw", learning_rate=0.005)
trainer = cwps.make_trainer(model, data, loss=squared_error, metric=minus_degrees_off, config=config)
# Random weights, so that the example needs no download; see cwps.load_backbone for published ones.
pool = cwps.Pool.create(
    pathlib.Path(tempfile.mkdtemp(), "pool"), trainer.new_variables(seed=0), trainer.layout
)
learned = cwps.learn_task(pool, "angle", model, data, config=config, trainer=trainer)
guess = SCALE * float(np.abs(test["label"] - np.median(train["label"])).mean())
print(f"degrees off: {-learned.metric:.1f}, and {guess:.1f} by the same answer for every image")

answers = SCALE * cwps.predict(pool, "angle", test["image"][:3], model=model).logits[:, 0]
print("degrees:", answers.round().tolist(), "for", (SCALE * test["label"][:3]).round().tolist())
