"""The report of the data check: the splits, and the findings about them."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class SplitReport:
    """The images that a run would use for one purpose.

    Attributes:
        role: "train", "validation" or "test".
        split: name of the split that they are from; the training split's where a tenth of it is held out.
        images: number of images that can be decoded and have a label that is a class.
        classes: number of classes that have such an image.
        all_classes: number of classes.
        smallest, largest: name of the class with the fewest and the most images, and the number of these.
        unreadable: images of the split that cannot be decoded; 0 for a held-out tenth.
    """

    role: str
    split: str
    images: int
    classes: int
    all_classes: int
    smallest: tuple[str, int]
    largest: tuple[str, int]
    unreadable: int


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that is wrong with a task's data.

    Attributes:
        kind: the kind of finding, in two or three fixed words.
        stops: whether it is a problem that stops a run; if not, it weakens the result.
        text: the finding and its place, in one line.
        items: everything that it is about: files with the reason, or classes.
    """

    kind: str
    stops: bool
    text: str
    items: tuple[str, ...] = ()

    def line(self, most: int = 5) -> str:
        """Returns the text with the first of its items."""
        more = f", and {len(self.items) - most} more" if len(self.items) > most else ""
        return ": ".join(filter(None, (self.text, ", ".join(self.items[:most]) + more)))


@dataclasses.dataclass(frozen=True)
class TaskReport:
    """The report of a pass over a task's data.

    Attributes:
        task: its name.
        splits: those that could be read, in the order of `ROLES`.
        findings: problems first.
    """

    task: str
    splits: tuple[SplitReport, ...]
    findings: tuple[Finding, ...]
