"""Images for a stored task, prepared in the same way as the images of its evaluation."""

import dataclasses
import functools
import glob
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import logging

from cwps_jax.data.decode import Undecodable
from cwps_jax.data.load import threads_of
from cwps_jax.data.source import ArraySource, ImageSource, Record
from cwps_jax.data.split import Arrays, ArraySplit, ImageSplit, Split
from cwps_jax.errors import CwpsError
from cwps_jax.serve.learned_with import LearnedWith
from cwps_jax.settings import DataConfig, nearest

Path = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class FileSource:
    """Image files, wherever they lie; see `ImageSource`.

    Attributes:
        files: the paths of the files.
        labels: (n,), the numbers of their classes; zeros if these are unknown.
        classes: the names of the classes.
        name: the name of the images in messages.
    """

    files: Sequence[str]
    labels: np.ndarray
    classes: Sequence[str]
    name: str = "images"
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Record:
        return Record(pathlib.Path(self.files[index]).read_bytes(), int(self.labels[index]))

    def describe(self, index: int) -> str:
        return self.files[index]


class GivenSplit(ImageSplit):
    """Images that were not decoded before, so that unreadable ones are found only when they are read."""

    def _changed(self, row: int, error: Undecodable) -> CwpsError:
        where = self.source.describe(int(self.items[row]))
        return CwpsError(f"{where}: not a readable image ({error}); mend it or leave it out")


def image_files(given: Sequence[Path]) -> list[str]:
    """Returns the paths of image files: given files, all files below given folders, and matches of patterns.

    Hidden files and folders below a given one are left out.

    Raises:
        CwpsError: a file or folder does not exist, a folder has no file, or a pattern has no match.
    """
    found: list[str] = []
    for path in given:
        one = os.fspath(path)
        # An existing path is not a pattern, even if there are brackets in it.
        places = [one] if os.path.exists(one) else sorted(glob.glob(one, recursive=True))
        files = [file for place in places for file in _files(place)]
        if not files:
            raise CwpsError(f"{one}: no such image, nor a folder or pattern with any; check the path")
        found += files
    if not found:
        raise CwpsError("no images are given; name files, folders or patterns")
    return found


def given_images(known: LearnedWith, images: Path | Sequence[Path] | np.ndarray) -> Split:
    """Returns images as a split, prepared as evaluation prepared the task's own.

    Args:
        known: the settings with which the task was learned.
        images: paths of files or folders, or patterns; or an array, (n, height, width, channels), uint8 of
            any size if the task was learned from images, otherwise as its model takes it. Pictures are taken
            whole; if the task's own pictures were cut to boxes, the log says so once.

    Raises:
        CwpsError: files are given and the task was learned from arrays, a file does not exist, or an array
            does not fit.
    """
    if isinstance(images, np.ndarray):
        labels = np.zeros(len(images), np.int32)
        if known.transform:
            return _split(known, ArraySource(images, labels, known.class_names), labels)
        if images.shape[1:] != known.shape:
            raise CwpsError(
                f"images are {images.shape}: {known.name} takes arrays {('n', *known.shape)} as they are"
            )
        return ArraySplit({"image": images, "label": labels}, known.preparation)
    files = image_files([images] if isinstance(images, str | os.PathLike) else images)
    unknown = np.zeros(len(files), np.int32)
    return _split(known, FileSource(files, unknown, known.class_names), unknown)


def given_arrays(known: LearnedWith, arrays: Arrays) -> Split:
    """Returns a dict of arrays as a split: "image" as `given_images` takes it, and fields such as "label".

    Raises:
        CwpsError: there is no "image", or it does not fit the task.
    """
    if "image" not in arrays:
        raise CwpsError(f"{known.name}: the data has no 'image', only {sorted(arrays)}: name the images so")
    fields = {name: np.asarray(array) for name, array in arrays.items() if name != "image"}
    return given_images(known, np.asarray(arrays["image"])).with_fields(**fields)


def class_folders(known: LearnedWith, folder: Path) -> Split:
    """Returns the images of a folder of class folders, <class>/<file>, as a split with labels by name.

    Raises:
        CwpsError: there is no such folder, it has no images, or a folder in it is not a class of the task.
    """
    root = pathlib.Path(folder)
    if not root.is_dir():
        raise CwpsError(f"{root}: no such folder; name one that has a folder of images for each class")
    numbers = {name: number for number, name in enumerate(known.class_names)}
    files, labels = [], []
    for place in sorted(path for path in root.iterdir() if path.is_dir() and not _hidden(path, root)):
        if place.name not in numbers:
            raise CwpsError(
                f"{place}: {known.name} has no class of this name, nearest is "
                f"{nearest(place.name, numbers) or ', '.join(numbers)!r}; rename the folder or leave it out"
            )
        inside = image_files([place])
        files += inside
        labels += [numbers[place.name]] * len(inside)
    if not files:
        raise CwpsError(f"{root}: no class folders in it; images lie in <class>/<file>")
    numbered = np.array(labels, np.int32)
    return _split(known, FileSource(files, numbered, known.class_names), numbered)


def _split(known: LearnedWith, source: ImageSource, labels: np.ndarray) -> Split:
    if known.transform is None:
        raise CwpsError(
            f"{known.name} was learned from arrays that go into its model as they are, not from image files; "
            "give arrays in Python, cwps.predict(pool, task, array)"
        )
    if known.told["images"] and known.told["images"].get("box"):
        _tell_of_boxes(known.name)
    return GivenSplit(
        source,
        np.arange(len(source)),
        np.zeros((len(source), 0), np.uint8),  # only the cache uses them
        {"label": labels.astype(np.int32)},
        known.transform,
        known.preparation,
        None,
        threads_of(DataConfig()),
    )


@functools.cache  # once per task
def _tell_of_boxes(name: str) -> None:
    logging.warning(
        "%s was learned from pictures cut to boxes; these are taken whole: cut them alike",
        name,
    )


def _files(place: str) -> list[str]:
    """Returns the file itself, or all files below a folder except hidden ones."""
    if not os.path.isdir(place):
        return [place]
    below = sorted(pathlib.Path(place).rglob("*"))
    return [str(path) for path in below if path.is_file() and not _hidden(path, place)]


def _hidden(path: pathlib.Path, below: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(below).parts)
