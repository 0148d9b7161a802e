"""Image folders, as they are or in zip archives.

| below `data_dir`, or in any `*.zip` in it | splits |
|---|---|
| `<task>/<split>/<class>/<file>` | the folders |
| `<task>/<class>/<file>` | lists, `<data_dir>/<task>_<split>.txt` or `<task>/<split>.txt` |

If there are lists, they decide (DomainNet has a class called train). Classes are numbered by name, or by the
numbers in the lists. Hidden files and files of operating systems are skipped; every other file in a class
folder is an image.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from cwps_jax.buckets import is_address
from cwps_jax.data.classes import same_name
from cwps_jax.data.places import Folder, Place, open_archive
from cwps_jax.data.source import Record
from cwps_jax.data.split_lists import ListedSplits, SplitList
from cwps_jax.data.split_names import KEYS, key_of
from cwps_jax.errors import CwpsError
from cwps_jax.settings import DataConfig

SPLITS = ("train", "validation", "val", "test")  # looked for, beside those that the config names
_WHERE = (
    "images lie in <task>/<split>/<class>/<file>, or in <task>/<class>/<file> with lists <task>_<split>.txt, "
    "which scripts/make_split_lists.py writes where none are published"
)


class Image(NamedTuple):
    """An image file: its path in its place, what changes when it does, and the number of its class."""

    path: str
    stamp: str
    label: int


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """The images of one split; see `ImageSource`.

    Attributes:
        place: the folder or archive of the images.
        name: for messages.
        classes: names of the classes.
        images: the images in their order.
        note: a note on how the numbers in lists were read.
    """

    place: Place
    name: str
    classes: Sequence[str]
    images: Sequence[Image]
    note: str = ""

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the classes and, in their order, of all paths, sizes, and times or checksums."""
        digest = hashlib.sha256()
        for words in ((self.place.stamp, self.name, *self.classes), *(one[:2] for one in self.images)):
            digest.update("\0".join((*words, "\n")).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        return Record(self.place.read(self.images[index].path), self.images[index].label)

    def describe(self, index: int) -> str:
        return self.place.describe(self.images[index].path)


def split_names(settings: DataConfig, task: str) -> tuple[str, ...]:
    """Returns the splits of a task: its folders, or those of `SPLITS` and of the config that have lists.

    Raises:
        CwpsError: the folder or the task does not exist, or the task exists twice.
    """
    place, task = _place(settings, task)
    return _layout(settings, task, place).splits


def open_split(settings: DataConfig, task: str, split: str) -> FolderSource:
    """Returns a split, or several that are joined, as in "train+validation".

    Args:
        settings: the settings with the `data_dir`, and the `train_split`, whose classes are those of the
            task.
        task: the task's name.
        split: the split's name.

    Raises:
        CwpsError: the folder, the task or the split does not exist, or the task exists twice; a class or the
            split is empty, or a class is not in the training data; a file leads out of the folder.
    """
    place, task = _place(settings, task)
    layout = _layout(settings, task, place)
    parts, training = split.split("+"), settings.train_split.split("+")
    for part in (*training, *parts):
        if part not in layout.splits:
            raise CwpsError(_missing(place, task, part, layout.splits))
    classes = layout.classes(training)
    numbers = {name: number for number, name in enumerate(classes)}
    images: list[Image] = []
    for part in parts:
        before = len(images)
        for path, stamp, label in layout.items(part):
            if label not in numbers:
                raise CwpsError(
                    f"{place.describe(path)}: class {label!r} of {part} is not in {settings.train_split}"
                )
            images.append(Image(path, stamp, numbers[label]))
        if len(images) == before:
            raise CwpsError(f"{place.describe(task)}: split {part!r} is empty; {_WHERE}")
    empty = sorted({*range(len(classes))} - {one.label for one in images}) if parts == training else ()
    if empty:
        folder = place.describe(f"{task}/{parts[0]}/{classes[empty[0]]}")
        raise CwpsError(f"{folder}: empty class, it has no image; add some or remove the folder")
    return FolderSource(place, f"{place.describe(task)}/{split}", tuple(classes), images, layout.note)


class _FolderSplits:
    """The splits of a task `<task>/<split>/<class>/<file>`, with the methods of `ListedSplits`."""

    note = ""

    def __init__(self, place: Place, task: str, splits: Sequence[str]) -> None:
        self._place, self._task, self.splits = place, task, tuple(splits)

    def classes(self, training: Sequence[str]) -> list[str]:
        folders = (self._place.listing(f"{self._task}/{split}").folders for split in training)
        return sorted({same_name(name) for names in folders for name in names})

    def items(self, split: str) -> Iterator[tuple[str, str, str]]:
        seen: set[str] = set()
        for label in self._place.listing(f"{self._task}/{split}").folders:
            if same_name(label) in seen:
                where = self._place.describe(f"{self._task}/{split}/{label}")
                raise CwpsError(
                    f"{where}: exists twice, in both Unicode spellings of its accents; move the images "
                    "into one folder"
                )
            seen.add(same_name(label))
            folder = f"{self._task}/{split}/{label}"
            found = self._place.listing(folder)
            if found.folders:
                raise CwpsError(
                    f"{self._place.describe(f'{folder}/{found.folders[0]}')}: a folder in a class folder; "
                    "images lie in <task>/<split>/<class>/<file>"
                )
            for file, stamp in found.files.items():
                yield f"{folder}/{file}", stamp, same_name(label)


def _layout(settings: DataConfig, task: str, place: Place) -> _FolderSplits | ListedSplits:
    asked = "+".join((settings.train_split, settings.validation_split, settings.test_split)).split("+")
    names = [name for name in dict.fromkeys((*SPLITS, *asked)) if name]
    root, top = _root(settings), place.listing(task)
    beside = root.listing("").files

    def listed(names: Iterable[str]) -> dict[str, SplitList]:
        lists: dict[str, SplitList] = {}
        for name in names:
            path, inner = f"{task}_{name}.txt", f"{task}/{name}.txt"
            if path in beside:
                root.inside(path)
                lists[name] = SplitList(root.describe(path), root.read(path), f"{task}/")
            if f"{name}.txt" in top.files:
                if name in lists:
                    both = f"{lists[name].name} and {place.describe(inner)}"
                    raise CwpsError(f"{both} both exist: remove one")
                lists[name] = SplitList(place.describe(inner), place.read(inner), "")
        return lists

    lists = listed(names)
    if lists:  # beside them others that are called like splits, so that the check tells of them
        start, called = f"{task}_", {name for names in KEYS.values() for name in names}
        files = (*top.files, *(path.removeprefix(start) for path in beside if path.startswith(start)))
        stems = {name.removesuffix(".txt") for name in files if name.endswith(".txt")}
        others = sorted(name for name in stems - lists.keys() if name.casefold() in called)
        return ListedSplits(place, task, {**lists, **listed(others)})
    known = {name.casefold() for name in names}
    # Without any that is called like a split, they are class folders, whose lists are missing.
    are_splits = any(name.casefold() in known for name in top.folders)
    in_order = dict.fromkeys((*(name for name in names if name in top.folders), *top.folders))
    return _FolderSplits(place, task, tuple(in_order) if are_splits else ())


def _root(settings: DataConfig) -> Folder:
    if not settings.data_dir:
        raise CwpsError("config.data_dir is empty: name the folder of the data")
    if is_address(settings.data_dir):
        raise CwpsError(
            f"config.data_dir = {settings.data_dir!r}: folders of images are not read from a bucket; copy "
            "them to a folder on each host"
        )
    name = os.path.expanduser(settings.data_dir)
    if not os.path.isdir(name):
        raise CwpsError(f"config.data_dir = {settings.data_dir!r}: no such folder")
    return Folder(name)


def _place(settings: DataConfig, task: str) -> tuple[Place, str]:
    """Returns the place of a task, and the name of its folder there."""
    root = _root(settings)
    places: list[Place] = [root]
    for name in root.listing("").files:
        if name.lower().endswith(".zip"):
            places.append(open_archive(root.inside(name)))
    found = [
        (place, name)
        for place in places
        for name in place.listing("").folders
        if same_name(name) == same_name(task)
    ]
    if not found:
        known = ", ".join(sorted({name for place in places for name in place.listing("").folders})) or "none"
        raise CwpsError(f"config.data_dir = {settings.data_dir!r} has no task {task!r}; it has {known}")
    if len(found) > 1:
        raise CwpsError(f"task {task!r} is in {found[0][0].name} and in {found[1][0].name}: remove one")
    return found[0]


def _use(splits: Sequence[str], wanted: str) -> str:
    """Returns the key that names a split of another spelling, such as "Test" for "test"; "" without one."""
    purpose = key_of(wanted).partition("=")[0]
    keys = [key for key in map(key_of, splits) if key.startswith(f"{purpose}=")]
    return f"; set {keys[0]}" if keys else ""


def _missing(place: Place, task: str, split: str, splits: Sequence[str]) -> str:
    if splits:
        return (
            f"{place.describe(task)} has no split {split!r}; it has {', '.join(splits)}{_use(splits, split)}"
        )
    return f"{place.describe(task)} has neither splits nor lists of them; {_WHERE}"
