"""The pool's index: one JSON file, replaced atomically, with all versions of the pool."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from cwps_jax.core.channels import Layer, Layout
from cwps_jax.errors import CwpsError
from cwps_jax.files import write_atomically

FORMAT = 8
# Versions of 2 are all of shared channels, and have no sketches; those of 3 lie in folders of their names;
# those of 4 are all in float32; entropy-coded rows of 6 have no frequencies; all heads of 7 are in float32.
READABLE = (2, 3, 4, 5, 6, 7, FORMAT)


@dataclasses.dataclass(frozen=True)
class Version:
    """One stored, immutable version of a task's model.

    Attributes:
        id: its number in the pool, from 1; channels name their owner by it. 0 is the pre-trained model. It is
            never used again, so it always means the same version.
        task: the task's name.
        version: 1 for the task's first.
        rows_sha256: SHA-256 of the files of its rows, which other versions borrow; "" if it has none.
        own_sha256: SHA-256 of its other files.
        bytes: payload bytes of both trees; a sketch can be made again, and does not count.
        record: measurements from when it was learned; plain JSON.
        method: name of the method by which it is restored, and
        settings: its settings; plain JSON.
        uses: numbers of other versions that it needs to be restored, besides its rows' owners.
        compared: whether it is a compared method's model of a task, and not a task.
        sketch_sha256: SHA-256 of the files of its rows' sketch; "" if it has none.
        folder: its folder's name, which stays when the task is renamed.
        owned: {number of an owner, as text: parameters of this version's channels that it stores}; None for a
            task that is not stored as channels, or that an earlier release stored.
        ratio: the share of the backbone that it stores (params_ratio), so that a list of all tasks reads no
            tree; None if an earlier release stored it.
    """

    id: int
    task: str
    version: int
    rows_sha256: str
    own_sha256: str
    bytes: int
    record: Mapping[str, Any]
    method: str = "cwps"
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    uses: tuple[int, ...] = ()
    compared: bool = False
    sketch_sha256: str = ""
    folder: str = ""
    ratio: float | None = None
    owned: Mapping[str, int] | None = None

    @property
    def name(self) -> str:
        return f"{self.task}@{self.version}"


@dataclasses.dataclass(frozen=True)
class Index:
    """Everything that the pool knows without reading an array.

    Attributes:
        backbone: name of the backbone.
        layout: the layout of the pre-trained model; a task's head may differ.
        pretrained_sha256: SHA-256 of the shared tree's files.
        pretrained_record: the origin of the pre-trained model; plain JSON.
        versions: all stored versions, oldest first.
        next_id: the number of the version that is stored next.
    """

    backbone: str
    layout: Layout
    pretrained_sha256: str
    pretrained_record: Mapping[str, Any]
    versions: tuple[Version, ...] = ()
    next_id: int = 1

    @functools.cached_property
    def by_id(self) -> dict[int, Version]:
        """The versions by their numbers."""
        return {version.id: version for version in self.versions}

    @functools.cached_property
    def by_name(self) -> dict[str, Version]:
        """The versions by "task@n", and each task's newest one by the task's name."""
        newest = {version.task: version for version in self.versions}
        return newest | {version.name: version for version in self.versions}

    def write(self, folder: pathlib.Path) -> None:
        """Replaces the index file: a reader sees the old one or the new one, whenever it looks."""
        values = {
            "format": FORMAT,
            "backbone": self.backbone,
            "layout": dataclasses.asdict(self.layout),
            "pretrained_sha256": self.pretrained_sha256,
            "pretrained_record": self.pretrained_record,
            "next_id": self.next_id,
        }
        # A version a line, as it is: Python writes that in C, and a thousand of them ten times as fast.
        versions = ",\n".join(json.dumps(vars(version), sort_keys=True) for version in self.versions)
        rest = json.dumps(values, sort_keys=True)
        write_atomically(folder / "index.json", f'{rest[:-1]}, "versions": [\n{versions}\n]}}\n')

    @classmethod
    def read(cls, folder: pathlib.Path) -> "Index":
        """Reads the index. Raises CwpsError if there is none or it cannot be understood."""
        path = folder / "index.json"
        try:
            values = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise CwpsError(f"{folder}: no pool here (no index.json)") from error
        except ValueError as error:
            raise CwpsError(f"{path}: not a pool's index; restore it from a copy") from error
        if not isinstance(values, dict) or values.get("format") not in READABLE:
            raise CwpsError(f"{path}: not a pool of format {FORMAT}; use the cwps_jax that wrote it")
        versions = tuple(map(_version, values["versions"]))
        return cls(
            values["backbone"],
            _layout(values["layout"]),
            values["pretrained_sha256"],
            values["pretrained_record"],
            versions,
            values.get("next_id", 1 + max((version.id for version in versions), default=0)),
        )


def _version(values: Mapping[str, Any]) -> Version:
    folder = f"{values['task']}@{values['version']}"
    return Version(**{"folder": folder, **values, "uses": tuple(values.get("uses", ()))})


def _layout(values: Mapping[str, Any]) -> Layout:
    def leaves(pairs: list[Any]) -> tuple[tuple[str, tuple[int, ...]], ...]:
        return tuple((path, tuple(shape)) for path, shape in pairs)

    layers = tuple(
        Layer(
            layer["path"],
            tuple(layer["leaves"]),
            tuple(tuple(shape) for shape in layer["shapes"]),
            tuple(layer["gate_shape"]),
        )
        for layer in values["layers"]
    )
    return Layout(layers, leaves(values["private"]), leaves(values["head"]))


def compared_name(task: str, method: str) -> str:
    """Returns the pool's name of a compared method's model of a task."""
    return f"{task}+{method}"
