"""Tasks in image folders, `<data_dir>/<task>/<split>/<class>/<file>`, or in zip archives of such folders.

Splits are `train` and `test`; where there is no `validation` it is taken from `train`. Images are RGB, the
largest square in the middle scaled to one size, normalised by ImageNet's mean and deviation.
"""

import dataclasses
import functools
import io
import pathlib
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cwps_jax.data.task import TaskData
from cwps_jax.errors import CwpsError

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Item:
    """One image file.

    Attributes:
        name: of the file, for messages.
        label: name of its class.
        read: returns its bytes.
    """

    name: str
    label: str
    read: Callable[[], bytes]


def folder_task(task: str, *, data_dir: str, image_size: int) -> TaskData:
    """Returns one task, images (n, image_size, image_size, 3), float32.

    Raises:
        CwpsError: the folder or the task is not there, a split is missing, a class of one split is not in
            the training data, or a file is not an image.
    """
    if not data_dir:
        raise CwpsError("config.data_dir is empty: name the folder of the data")
    found = _tasks(str(pathlib.Path(data_dir).expanduser()))
    if task not in found:
        known = ", ".join(sorted(found)) or "none"
        raise CwpsError(f"config.data_dir = {data_dir!r} has no task {task!r}; it has {known}")
    splits = found[task]
    for split in ("train", "test"):
        if split not in splits:
            raise CwpsError(f"{data_dir}: task {task!r} has no folder {split!r}")
    classes = sorted({item.label for item in splits["train"]})
    arrays, contents = {}, {}
    for split, items in splits.items():
        for item in items:
            if item.label not in classes:
                raise CwpsError(f"{item.name}: class {item.label!r} is not in {task}/train")
        contents[split] = [item.read() for item in items]
        arrays[split] = {
            "image": _images(items, contents[split], image_size),
            "label": np.array([classes.index(item.label) for item in items], np.int32),
        }
    return TaskData.from_arrays(
        arrays["train"],
        arrays["test"],
        validation=arrays.get("validation"),
        classes=len(classes),
        item_ids=contents["train"],
    )


@functools.cache
def _tasks(data_dir: str) -> dict[str, dict[str, list[Item]]]:
    """Returns {task: {split: its items, in the order of their names}} of a folder and the archives in it."""
    root = pathlib.Path(data_dir)
    if not root.is_dir():
        raise CwpsError(f"config.data_dir = {data_dir!r}: no such folder")
    found: dict[str, dict[str, list[Item]]] = {}
    origin: dict[str, str] = {}
    listings = [(str(root), _folder_items(root))]
    listings += [(str(archive), _archive_items(archive)) for archive in sorted(root.glob("*.zip"))]
    for place, listing in listings:
        for (task, split, label, name), read in sorted(listing.items()):
            if split not in SPLITS or name.startswith(".") or name == "Thumbs.db":
                continue
            if origin.setdefault(task, place) != place:
                raise CwpsError(f"task {task!r} is in {origin[task]} and in {place}: remove one")
            items = found.setdefault(task, {}).setdefault(split, [])
            items.append(Item(f"{place}: {task}/{split}/{label}/{name}", label, read))
    return found


Listing = dict[tuple[str, str, str, str], Callable[[], bytes]]


def _folder_items(root: pathlib.Path) -> Listing:
    listing: Listing = {}
    for path in root.glob("*/*/*/*"):
        if path.is_file():
            task, split, label, name = path.relative_to(root).parts
            listing[task, split, label, name] = path.read_bytes
    return listing


def _archive_items(path: pathlib.Path) -> Listing:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise CwpsError(f"{path}: not a readable zip archive") from error
    listing: Listing = {}
    for name in archive.namelist():
        parts = name.split("/")
        if len(parts) == 4 and parts[3]:
            task, split, label, file = parts
            listing[task, split, label, file] = functools.partial(archive.read, name)
    return listing


def _images(items: list[Item], contents: list[bytes], size: int) -> np.ndarray:
    """Returns the decoded images, (n, size, size, 3), float32, normalised."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    def decode(item: Item, content: bytes) -> np.ndarray:
        try:
            with Image.open(io.BytesIO(content)) as image:
                upright = ImageOps.exif_transpose(image).convert("RGB")
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
            raise CwpsError(f"{item.name}: not a readable image ({error})") from error
        square = ImageOps.fit(upright, (size, size), Image.Resampling.BICUBIC)
        return (np.asarray(square, np.float32) / 255 - MEAN) / DEVIATION

    with ThreadPoolExecutor() as threads:
        return np.stack(list(threads.map(decode, items, contents)))
