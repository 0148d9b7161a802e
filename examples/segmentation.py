"""A class for each pixel instead of for each image: where is ink of even digits, where of odd ones?

Command:  python examples/segmentation.py        (needs cwps_jax[demo]; some seconds on a CPU)
Data:     embedded, scikit-learn's digits with noise; a pixel's class is background, even ink or odd ink
"""

import pathlib
import tempfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.metrics import jaccard_score

import cwps_jax as cwps

CLASSES = ("background", "even", "odd")


class Net(nn.Module):
    """Two convolutions that halve the size, two that double it again, and a head for each pixel."""

    @nn.compact
    def __call__(self, images):
        """Returns logits (batch, height, width, classes)."""
        fine = nn.relu(nn.Conv(16, (3, 3), strides=2)(images))
        coarse = nn.relu(nn.Conv(32, (3, 3), strides=2)(fine))
        up = nn.relu(nn.ConvTranspose(16, (2, 2), strides=(2, 2))(coarse))
        both = nn.relu(nn.ConvTranspose(16, (2, 2), strides=(2, 2))(jnp.concatenate([fine, up], axis=-1)))
        return nn.Conv(len(CLASSES), (1, 1), name="head")(both)


def pixels_cross_entropy(logits, batch):
    """Cross-entropy, averaged over an image's pixels: one value for each image."""
    labels = jax.nn.one_hot(batch["label"], len(CLASSES))
    return optax.softmax_cross_entropy(logits, labels).mean(axis=(1, 2))


@cwps.whole_split
def ink_iou(logits, fields):
    """Returns the mean intersection over union of the two kinds of ink, over all pixels of a split.

    metric="mean_iou" is the same with the background as a third class.
    """
    labels, found = fields["label"].ravel(), logits.argmax(axis=-1).ravel()
    return jaccard_score(labels, found, labels=(1, 2), average="macro")


scans, digits = load_digits(return_X_y=True)
scans = scans.reshape(-1, 8, 8)
labels = np.where(scans > 6, 1 + digits[:, None, None] % 2, 0).astype(np.int32)
noise = np.random.default_rng(0).normal(scale=0.3, size=scans.shape)
images = (scans / 8 - 1 + noise)[..., None].astype(np.float32)
train, test = ({"image": images[part], "label": labels[part]} for part in (slice(1400), slice(1400, None)))
data = cwps.TaskData.from_arrays(train, test)

model = Net()
config = cwps.TrainConfig(epochs=8, budget=0.5, optimizer="adamw", learning_rate=0.01)
trainer = cwps.make_trainer(model, data, loss=pixels_cross_entropy, metric=ink_iou, config=config)
# Random weights, so that the example needs no download; see cwps.load_backbone for published ones.
pool = cwps.Pool.create(
    pathlib.Path(tempfile.mkdtemp(), "pool"), trainer.new_variables(seed=0), trainer.layout
)
learned = cwps.learn_task(pool, "parity", model, data, config=config, trainer=trainer)
print(f"IoU of the ink: {learned.metric:.3f}, kept: {learned.params_ratio:.1%} of a backbone")

evaluation = cwps.evaluate(pool, "parity", test, model=model, metric="mean_iou")
masks = cwps.predict(pool, "parity", test["image"][:3], model=model).logits.argmax(axis=-1)
print(f"mean IoU with the background: {evaluation.metric:.3f}, masks {masks.shape}")
