"""A metric that is no mean over images: macro F1, computed once over a whole split by scikit-learn.

Command:  python examples/whole_split_metric.py        (needs cwps_jax[demo]; some seconds on a CPU)
Data:     embedded, scikit-learn's digits
"""

import pathlib
import tempfile

import flax.linen as nn
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import f1_score

import cwps_jax as cwps


class Net(nn.Module):
    """Two convolutions and a head."""

    classes: int

    @nn.compact
    def __call__(self, images):
        """Returns logits (batch, classes)."""
        for features in (16, 32):
            images = nn.relu(nn.Conv(features, (3, 3), strides=2)(images))
        return nn.Dense(self.classes, name="head")(images.reshape(len(images), -1))


@cwps.whole_split
def macro_f1(logits, fields):
    """Returns the mean of the classes' F1 over all images of a split, which come as NumPy arrays."""
    return f1_score(fields["label"], logits.argmax(axis=1), average="macro")


images, digits = load_digits(return_X_y=True)
images, digits = (images.reshape(-1, 8, 8, 1) / 8 - 1).astype(np.float32), digits.astype(np.int32)
train, test = ({"image": images[part], "label": digits[part]} for part in (slice(1400), slice(1400, None)))
data = cwps.TaskData.from_arrays(train, test, classes=10)

model = Net(classes=10)
config = cwps.TrainConfig(epochs=8, budget=0.5, optimizer="adamw", learning_rate=0.01)
trainer = cwps.make_trainer(model, data, metric=macro_f1, config=config)
# Random weights, so that the example needs no download; see cwps.load_backbone for published ones.
pool = cwps.Pool.create(
    pathlib.Path(tempfile.mkdtemp(), "pool"), trainer.new_variables(seed=0), trainer.layout
)
# While it trains no batch has this metric: progress shows nan. Choices are made by it on validation data.
learned = cwps.learn_task(pool, "digits", model, data, config=config, trainer=trainer)
print(f"macro F1: {learned.metric:.3f}, on validation data {learned.validation_metric:.3f}")

evaluation = cwps.evaluate(pool, "digits", test, model=model)
print(f"accuracy of the same task: {evaluation.metric:.1%}")
