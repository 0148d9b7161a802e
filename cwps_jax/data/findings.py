"""What a look through data finds, as the check tells it: splits and what is wrong with them."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class SplitReport:
    """The images that a run would use for one purpose.

    Attributes:
        role: "train", "validation" or "test".
        split: name of the split that they are from; the training split's where a tenth of it is held out.
        images: how many can be decoded and have a label that is a class.
        classes: how many classes have one.
        all_classes: how many classes there are.
        smallest, largest: name of the class with the fewest and the most images, and how many.
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
        kind: what, in two or three words, always the same.
        stops: whether it is a problem that stops a run; if not, it weakens the result.
        text: what is wrong and where, in one line.
        items: everything that it is about: files with the reason, classes.
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
    """What a pass over a task's data found.

    Attributes:
        task: its name.
        splits: those that could be read, in the order of `ROLES`.
        findings: problems first.
    """

    task: str
    splits: tuple[SplitReport, ...]
    findings: tuple[Finding, ...]
