"""A check of a task's images before a long run: problems that stop it, and findings that weaken it."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized

import numpy as np

from cwps_jax.data.classes import by_name
from cwps_jax.data.findings import Finding, SplitReport, TaskReport
from cwps_jax.data.load import split_roles, threads_of
from cwps_jax.data.scan import Scan, scan
from cwps_jax.data.source import ImageSource, Opener
from cwps_jax.data.split_names import key_of
from cwps_jax.data.task import VALIDATION_SHARE, held_out_items
from cwps_jax.data.value_range import check_values
from cwps_jax.errors import CwpsError
from cwps_jax.settings import DataConfig

FAINT = 32  # values that pixels differ by at most where images are all but one colour
ROLES = ("train", "validation", "test")
Observe = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class _Images:
    """The `rows` of a split that can be used, or some of them."""

    split: str
    source: ImageSource
    classes: Sequence[str]
    found: Scan
    rows: np.ndarray

    def renumbered(self, train: "_Images", role: str) -> "_Images":
        """Returns the images with labels by the training classes' numbers. Raises CwpsError for others."""
        labels = by_name(self.found.labels, self.classes, train.classes, role)
        found = dataclasses.replace(self.found, labels=labels)
        return dataclasses.replace(self, classes=train.classes, found=found)

    def counts(self) -> np.ndarray:
        """Returns how many images each class has."""
        return np.bincount(self.found.labels[self.rows], minlength=len(self.classes))

    def by_content(self) -> dict[bytes, int]:
        """Returns {content's hash: the first row that has it}."""
        return {self.found.digests[row].tobytes(): row for row in self.rows[::-1].tolist()}

    def labelled(self, row: int) -> str:
        return f"{self.source.describe(row)} ({self.classes[self.found.labels[row]]})"


def check_task(
    settings: DataConfig,
    task: str,
    opener: Opener,
    *,
    batch_size: int,
    observe: Observe = lambda split, count, total: None,
) -> TaskReport:
    """Returns the report of a pass over every image of a task; problems are in the report and are not raised.

    Args:
        settings: the task's data.
        task: its name.
        opener: opens this kind of data.
        batch_size: batch size of the run.
        observe: called with a split's name, the number of its images read since the last call, and their
            number in all.
    """
    read: dict[str, _Images] = {}
    findings: list[Finding] = []
    try:
        names = split_roles(settings, opener.split_names(settings, task))
    except CwpsError as error:
        return TaskReport(task, (), (_unread(error),))
    for role, name in zip(ROLES, names, strict=True):
        try:
            if name:
                images = _read(opener.open_split(settings, task, name), name, settings, observe)
                read[role] = images.renumbered(read.get("train", images), role)
        except CwpsError as error:
            if (finding := _unread(error)) not in findings:
                findings.append(finding)
    used = dict(read)
    if "train" in read and not names[1]:
        used["train"], used["validation"] = _hold_out(read["train"])
    for role, images in read.items():
        findings += _broken(role, images, settings.unreadable == "refuse")
    for role, images in used.items():
        findings += _missing_classes(role, images, used.get("train", images))
    if "train" in read:
        has_validation = bool(names[1]) or len(used["validation"].rows) > 0
        findings += _too_few(used["train"], has_validation, settings, batch_size)
        findings += _repeated(read["train"])
        findings += _values(read, settings, task)
    for one, other in itertools.combinations(read, 2):
        findings += _shared(one, read[one], other, read[other])
    findings += _several_labels(read.values())
    findings += _unused(opener.split_names(settings, task), names)
    splits = tuple(_report(role, used[role]) for role in ROLES if role in used)
    return TaskReport(task, splits, tuple(sorted(findings, key=lambda one: not one.stops)))


def _unread(error: CwpsError) -> Finding:
    return Finding("cannot be read", True, str(error))


def _read(source: ImageSource, split: str, settings: DataConfig, observe: Observe) -> _Images:
    if not len(source):
        raise CwpsError(f"{source.name} is empty")
    found = scan(
        source,
        cache_dir=settings.cache_dir,
        threads=threads_of(settings),
        observe=lambda count: observe(split, count, len(source)),
    )
    usable = (found.labels >= 0) & (found.labels < len(source.classes))
    usable[list(found.unreadable)] = False
    if not usable.any():
        raise CwpsError(f"{source.name}: none of its {len(source)} images can be used")
    return _Images(split, source, source.classes, found, np.flatnonzero(usable))


def _hold_out(train: _Images) -> tuple[_Images, _Images]:
    """Returns the images for training, and those that are held out for validation."""
    held_out = held_out_items(
        train.found.digests[train.rows], train.found.labels[train.rows], VALIDATION_SHARE
    )
    kept, validation = train.rows[~held_out], train.rows[held_out]
    found = dataclasses.replace(train.found, unreadable={})  # told of once, beside what is trained on
    return (
        dataclasses.replace(train, rows=kept),
        dataclasses.replace(train, rows=validation, found=found),
    )


def _broken(role: str, images: _Images, refused: bool) -> Iterator[Finding]:
    source, found = images.source, images.found
    if found.unreadable:
        items = tuple(f"{source.describe(row)} ({why})" for row, why in found.unreadable.items())
        what = "cannot be decoded" + ("" if refused else " and will be skipped")
        yield Finding("unreadable", refused, f"{role}: {_count(items, 'image')} {what}", items)
    classes = len(images.classes)
    wrong = np.flatnonzero((found.labels < 0) | (found.labels >= classes)).tolist()
    if wrong:
        items = tuple(f"{source.describe(row)} (label {found.labels[row]})" for row in wrong)
        text = f"{role}: {_count(items, 'label')} not from 0 to {classes - 1}"
        yield Finding("label out of range", True, text, items)


def _missing_classes(role: str, images: _Images, train: _Images) -> Iterator[Finding]:
    absent = images.counts() == 0
    if images is not train:
        absent &= train.counts() > 0  # those that train lacks too are told of once
    missing = tuple(images.classes[label] for label in np.flatnonzero(absent).tolist())
    if missing:
        text = f"{role}: {_count(missing, 'class', 'classes')} without an image"
        yield Finding("class without images", False, text, missing)


def _too_few(train: _Images, validation: bool, settings: DataConfig, batch_size: int) -> Iterator[Finding]:
    counts, images = train.counts(), len(train.rows)
    if not validation:
        text = "train: no class has a second image to validate on"
        yield Finding("no validation", True, f"{text}; add some, or name config.validation_split")
    if not settings.shots and images < batch_size:
        yield Finding(
            "fewer than a batch",
            True,
            f"train: config.batch_size = {batch_size}: only {images} images to train on; take a smaller one",
        )
    few = np.flatnonzero((counts > 0) & (counts < settings.shots)).tolist()
    if few:
        items = tuple(f"{train.classes[label]} ({counts[label]})" for label in few)
        text = f"train: config.shots = {settings.shots}: {_count(items, 'class', 'classes')} with fewer"
        yield Finding("fewer than shots", True, f"{text} images besides those for validation", items)


def _repeated(train: _Images) -> Iterator[Finding]:
    first = train.by_content()
    pairs = ((row, first[train.found.digests[row].tobytes()]) for row in train.rows.tolist())
    items = tuple(_same(train, row, train, other) for row, other in pairs if row != other)
    if items:
        yield Finding("duplicates", False, f"train: {_count(items, 'image')} stored more than once", items)


def _shared(role: str, images: _Images, other_role: str, other: _Images) -> Iterator[Finding]:
    first = images.by_content()
    rows = ((row, first.get(other.found.digests[row].tobytes())) for row in other.rows.tolist())
    items = tuple(_same(other, row, images, same) for row, same in rows if same is not None)
    if items:
        text = f"{other_role}: {len(items)} of {_count(other.rows, 'image')} also in {role}"
        yield Finding("shared images", False, text, items)


def _several_labels(read: Iterable[_Images]) -> Iterator[Finding]:
    first: dict[bytes, tuple[_Images, int]] = {}
    clashes: dict[bytes, str] = {}
    for images in read:
        for row in images.rows.tolist():
            digest = images.found.digests[row].tobytes()
            one, same = first.setdefault(digest, (images, row))
            if one.found.labels[same] != images.found.labels[row]:
                clashes.setdefault(digest, f"{one.labelled(same)} = {images.labelled(row)}")
    if clashes:
        items = tuple(clashes.values())
        yield Finding("several labels", False, f"{_count(items, 'image')} of more than one class", items)


def _values(read: Mapping[str, _Images], settings: DataConfig, task: str) -> Iterator[Finding]:
    others = [images.found.values for role, images in read.items() if role != "train"]
    try:
        check_values(read["train"].found.values, others, settings.image_bits, task)
    except CwpsError as error:
        yield Finding("value range", True, str(error))
        return
    seen = read["train"].found.values
    low, high = seen[seen[:, 0] == 8, 1:].reshape(-1, 2).T
    if len(low) and high.max() - low.min() < FAINT:
        text = f"train: no pixel is below {low.min()} or above {high.max()} of 0 to 255"
        yield Finding("faint images", False, f"{text}; store the images with their whole range")


def _unused(there: Sequence[str], used: Sequence[str]) -> Iterator[Finding]:
    parts = {part.partition("[")[0] for name in used for part in name.split("+")}
    for split in there:
        if split not in parts:
            yield Finding("unused split", False, f"split {split!r} is not used; {key_of(split)} uses it")


def _same(images: _Images, row: int, other: _Images, same: int) -> str:
    return f"{images.source.describe(row)} = {other.source.describe(same)}"


def _report(role: str, images: _Images) -> SplitReport:
    counts, classes = images.counts(), images.classes
    smallest, largest = int(counts.argmin()), int(counts.argmax())
    return SplitReport(
        role,
        images.split,
        len(images.rows),
        int((counts > 0).sum()),
        len(classes),
        (classes[smallest], int(counts[smallest])),
        (classes[largest], int(counts[largest])),
        len(images.found.unreadable),
    )


def _count(things: Sized, one: str, many: str = "") -> str:
    return f"{len(things):,} {one if len(things) == 1 else many or one + 's'}"
