"""The embedded data set: scikit-learn's handwritten digits as a source task and seven target tasks.

1,797 real scans of 8 x 8 pixels, drawn at 12 x 12. A scan is a test scan of *every* task or of none: 30% by
the hash of its pixels, so equal scans stay together too and nothing leaks from one task into another.

| task | drawn as | labels |
|---|---|---|
| digits | as scanned: the source of the pre-trained model | 10 digits |
| negative | photographic negative | 10 digits |
| mirrored | left and right swapped | 10 digits |
| rotated | a quarter turn to the left | 10 digits |
| thick | thickened strokes (grey dilation, 3 x 3) | 10 digits |
| clutter | on a noisy ground cluttered with pieces of strokes | 10 digits |
| outline | the strokes' edges alone | 10 digits |
| loops | as scanned, upside down | 3: no closed loop, one (0, 6, 9), two (8); without 4 |

4 is left out of `loops` because writers close it or not.
"""

import functools
import hashlib

import numpy as np

from cwps_jax.data.source import ArraySource
from cwps_jax.errors import CwpsError
from cwps_jax.extras import check_extra
from cwps_jax.settings import DataConfig

SIZE = 12
PIECE = 5  # pixels of a piece of clutter
TEST_PERCENT = 30
LOOPS = {0: 1, 1: 0, 2: 0, 3: 0, 5: 0, 6: 1, 7: 0, 8: 2, 9: 1}


@functools.cache
def _scans() -> tuple[np.ndarray, np.ndarray, list[bytes]]:
    """Returns images (n, 12, 12) float32 in [0, 1], labels (n,) and an identity for each scan."""
    check_extra("demo", "config.data = 'digits'")
    from scipy import ndimage
    from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
    scans = scans.reshape(-1, 8, 8)
    ids = [hashlib.sha256(scan.astype(np.uint8).tobytes()).digest() for scan in scans]
    drawn = ndimage.zoom(scans, (1, SIZE / 8, SIZE / 8), order=1, grid_mode=True, mode="nearest") / 16.0
    return drawn.astype(np.float32), labels.astype(np.int32), ids


def _clutter(images: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(0)
    ground = rng.uniform(0.0, 0.45, images.shape)
    for _ in range(3):  # pieces of other scans, dimmed, at random places
        piece = images[rng.permutation(len(images))][:, 3 : 3 + PIECE, 3 : 3 + PIECE]
        for scan, (row, column) in enumerate(rng.integers(0, SIZE - PIECE, (len(images), 2))):
            window = ground[scan, row : row + PIECE, column : column + PIECE]
            np.maximum(window, 0.6 * piece[scan], out=window)
    return np.maximum(images, ground)


def _outline(images: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    return ndimage.morphological_gradient(images, size=(1, 3, 3))


def _thick(images: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    return ndimage.grey_dilation(images, size=(1, 3, 3))


DOMAINS = {
    "digits": lambda images: images,
    "negative": lambda images: 1 - images,
    "mirrored": lambda images: images[:, :, ::-1],
    "rotated": lambda images: np.rot90(images, axes=(1, 2)),
    "thick": _thick,
    "clutter": _clutter,
    "outline": _outline,
    "loops": lambda images: images[:, ::-1],
}


def split_names(settings: DataConfig, task: str) -> tuple[str, ...]:
    """Returns the names of the splits."""
    return ("train", "test")


def open_split(settings: DataConfig, task: str, split: str) -> ArraySource:
    """Returns a split of one of the tasks, images (n, 12, 12, 1) float32 normalised to about [-1, 1].

    Raises:
        CwpsError: a task or split that is not there, a folder or another size, or scikit-learn is not
            installed.
    """
    if settings.data_dir:
        raise CwpsError(f"config.data_dir = {settings.data_dir!r}: the digits are embedded; leave it empty")
    if settings.image_size not in (0, SIZE):
        raise CwpsError(f"config.image_size = {settings.image_size}: the digits have {SIZE} pixels per side")
    if task not in DOMAINS:
        raise CwpsError(f"the digits have no task {task!r}; choose from {', '.join(DOMAINS)}")
    if split not in split_names(settings, task):
        raise CwpsError(f"the digits have no split {split!r}; choose from train, test")
    scans, labels, ids = _scans()
    images = (DOMAINS[task](scans)[..., None] * 2 - 1).astype(np.float32)
    classes = [str(digit) for digit in range(10)]
    kept = np.array(
        [(int.from_bytes(one[8:16], "big") % 100 < TEST_PERCENT) == (split == "test") for one in ids]
    )
    if task == "loops":
        classes, kept = ["none", "one", "two"], kept & (labels != 4)
        labels = np.array([LOOPS.get(int(label), 0) for label in labels], np.int32)
    (chosen,) = np.nonzero(kept)
    return ArraySource(
        images[chosen],
        labels[chosen],
        classes,
        name=f"digits: {task}/{split}",
        identities=[ids[index] for index in chosen],
    )
