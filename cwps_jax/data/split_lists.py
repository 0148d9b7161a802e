"""Split lists: text files that say which images of a task's class folders belong to which split.

A line is `<class>/<file>`, or `<task>/<class>/<file>` in a list beside the tasks, as DomainNet's own are. The
number of the class may follow: `real/aircraft_carrier/real_001_000001.jpg 0`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from cwps_jax.data.classes import not_from_zero, same_name
from cwps_jax.data.places import Place
from cwps_jax.errors import CwpsError

_NO_NAMES = ("", ".", "..")
_LINE = re.compile(r"(.+?)(?:\s+([+-]?\d+))?")  # a path, and perhaps a number


class SplitList(NamedTuple):
    """The content of a split list.

    Attributes:
        name: its path, for messages.
        content: the text of the file.
        start: the beginning of every path in it, before the class: "" or "<task>/".
    """

    name: str
    content: bytes
    start: str


class _Line(NamedTuple):
    where: str
    label: str
    file: str


class ListedSplits:
    """The splits of a task `<task>/<class>/<file>` by their lists.

    Args:
        place: the folder or archive of the images.
        task: the task's name.
        lists: {split: its list}.
    """

    def __init__(self, place: Place, task: str, lists: Mapping[str, SplitList]) -> None:
        self._place, self._task, self._lists = place, task, lists
        self._lines: dict[str, list[_Line]] = {}
        self._numbers: dict[str, int] = {}
        self._numbered: dict[int, str] = {}
        self.splits, self.note = tuple(lists), ""

    def classes(self, training: Sequence[str]) -> list[str]:
        """Returns the classes of the training splits in the order of their numbers, or else by name."""
        names = {line.label for split in training for line in self._parsed(split)}
        numbers = sorted(self._numbers[name] for name in names if name in self._numbers)
        if len(numbers) < len(names):
            return sorted(names)
        self.note = not_from_zero(numbers)
        return [self._numbered[number] for number in numbers]

    def items(self, split: str) -> Iterator[tuple[str, str, str]]:
        """Yields path, stamp and class of each image of a split, in the order of its list.

        Raises:
            CwpsError: a line is wrong, or its file does not exist.
        """
        present = {same_name(name): name for name in self._place.listing(self._task).folders}
        found: dict[str, dict[str, tuple[str, str]]] = {}
        for where, label, file in self._parsed(split):
            folder = f"{self._task}/{present.get(label, label)}"
            if label in present and label not in found:
                files = self._place.listing(folder).files
                found[label] = {same_name(name): (name, stamp) for name, stamp in files.items()}
            if label not in present or same_name(file) not in found[label]:
                raise CwpsError(f"{where}: there is no file {self._place.describe(f'{folder}/{file}')}")
            name, stamp = found[label][same_name(file)]
            yield f"{folder}/{name}", stamp, label

    def _parsed(self, split: str) -> list[_Line]:
        if split not in self._lines:
            self._lines[split] = list(self._parse(self._lists[split]))
        return self._lines[split]

    def _parse(self, listed: SplitList) -> Iterator[_Line]:
        try:
            text = listed.content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise CwpsError(f"{listed.name}: not a text in UTF-8 ({error.reason})") from error
        seen: dict[str, str] = {}
        for position, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            where = f"{listed.name}, line {position}"
            match = _LINE.fullmatch(line.strip())
            path, number = match.groups() if match else (line, None)
            label, _, file = path.removeprefix(listed.start).partition("/")
            label = same_name(label)
            plain = "/" not in file and "\\" not in path and label not in _NO_NAMES and file not in _NO_NAMES
            if not plain or not path.startswith(listed.start):
                raise CwpsError(f"{where}: {path!r} is not {listed.start}<class>/<file>")
            if path in seen:
                raise CwpsError(f"{where}: {path!r} is there a second time, see {seen[path]}")
            seen[path] = f"line {position}"
            if number is not None:
                self._number(where, label, int(number))
            yield _Line(where, label, file)

    def _number(self, where: str, label: str, number: int) -> None:
        if number < 0:
            raise CwpsError(f"{where}: {number} is not the number of a class; they are counted from 0")
        known = self._numbers.setdefault(label, number)
        if known != number:
            raise CwpsError(f"{where}: class {label!r} is number {number} here and {known} before")
        other = self._numbered.setdefault(number, label)
        if other != label:
            raise CwpsError(f"{where}: number {number} is class {label!r} here and {other!r} before")
