"""Data sets of the Hugging Face `datasets` package: of its hub, or folders of parquet or arrow files."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from cwps_jax.data.classes import not_from_zero
from cwps_jax.data.source import Record
from cwps_jax.errors import CwpsError
from cwps_jax.extras import check_extra
from cwps_jax.settings import DataConfig

ALONE = "train"  # what a data set without named splits is called


@dataclasses.dataclass(frozen=True)
class HuggingFaceSource:
    """One split; see `ImageSource`.

    Attributes:
        name: its name in messages.
        classes: names of the classes.
        fingerprint: the package's own; "" where images are files beside the data set.
        rows: the package's own random access, with images undecoded.
        image, label: names of the columns that are read.
        numbers: {label as it is stored: its number}; None for stored positions in `classes`.
        note: a note on how labels that are numbers were read.
    """

    name: str
    classes: Sequence[str]
    fingerprint: str
    rows: Sequence[Mapping[str, Any]]
    image: str
    label: str
    numbers: Mapping[Any, int] | None
    note: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        row = self.rows[index]
        image, label = row[self.image], row[self.label]
        if image is None or label is None:
            missing = self.image if image is None else self.label
            raise CwpsError(f"{self.describe(index)}: {missing!r} is empty; fill it or remove the row")
        if self.numbers is not None:
            label = self.numbers[label]
        content = image["bytes"]
        if content is None:
            try:
                content = pathlib.Path(image["path"]).read_bytes()
            except OSError as error:
                raise CwpsError(f"{self.describe(index)}: cannot read {image['path']} ({error})") from error
        return Record(content, int(label))

    def describe(self, index: int) -> str:
        return f"{self.name}, row {index}"


def open_split(settings: DataConfig, task: str, split: str) -> HuggingFaceSource:
    """Returns one split, which is downloaded unless it is on this machine or HF_HUB_OFFLINE is set.

    Args:
        settings: `dataset` is a folder on this machine, or a name on the hub such as "owner/name" or
            "owner/name:configuration". `label` is a column of classes, whole numbers or text. `data_dir` is
            the folder of downloaded and converted files; "" for the package's own.
        task: the task's name.
        split: such as "train" or "train+validation".

    Raises:
        CwpsError: the package, the data set, the split or a column does not exist.
    """
    name, splits = _splits(settings, task)
    chosen = _joined(name, splits, split)
    image, label = _image_column(name, chosen), settings.label
    if label not in chosen.column_names:
        raise CwpsError(f"config.label = {label!r}: {name} has no such column, only {_list(chosen)}")
    if settings.box:
        raise CwpsError(f"config.box: {name} is not known to have bounding boxes; set it to False")
    classes, numbers, note = _classes(name, chosen, label, training=split == settings.train_split)
    from datasets import Image

    rows = chosen.select_columns([image, label]).cast_column(image, Image(decode=False))
    # Files beside the data set may change without its knowing.
    fingerprint = "" if _names_files(rows, image) else f"{rows._fingerprint} {classes}"
    return HuggingFaceSource(f"{name} {split}", classes, fingerprint, rows, image, label, numbers, note)


def split_names(settings: DataConfig, task: str) -> tuple[str, ...]:
    """Returns the names of a data set's splits. Raises CwpsError like `open_split`."""
    return tuple(_splits(settings, task)[1])


def _splits(settings: DataConfig, task: str) -> tuple[str, Mapping[str, Any]]:
    """Returns the name of the data set, and {name: split}."""
    check_extra("huggingface", "config.data = 'huggingface'")
    import datasets

    name = settings.dataset.replace("{task}", task)
    if not name:
        raise CwpsError("config.dataset is empty: name a folder, or a data set of the hub such as owner/name")
    data_dir = os.path.expanduser(settings.data_dir) or None
    if data_dir and not os.path.isdir(data_dir):
        raise CwpsError(f"config.data_dir = {settings.data_dir!r}: no such folder")
    folder = pathlib.Path(name).expanduser()
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            found = datasets.load_from_disk(str(folder))
        else:
            path, config = (str(folder), "") if folder.exists() else name.partition(":")[::2]
            found = datasets.load_dataset(path, config or None, cache_dir=data_dir)
    except Exception as error:  # each format and each way to the hub raises its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CwpsError(f"config.dataset = {name!r} cannot be loaded: {reason}") from error
    return name, {ALONE: found} if isinstance(found, datasets.Dataset) else found


def _joined(name: str, splits: Mapping[str, Any], split: str) -> Any:
    """Returns the rows of a split such as "train+validation"."""
    from datasets import concatenate_datasets

    parts = split.split("+")
    for part in parts:
        if part not in splits:
            raise CwpsError(f"config.dataset = {name!r}: no split {part!r}; it has {', '.join(splits)}")
    first, *others = (splits[part] for part in parts)
    for part, other in zip(parts[1:], others, strict=True):
        if other.features != first.features:
            differing = [key for key in first.features if other.features.get(key) != first.features[key]]
            raise CwpsError(
                f"config.dataset = {name!r}: {parts[0]} and {part} cannot be joined, they differ in "
                f"{', '.join(differing or other.features)}, such as the order of classes; name one of them"
            )
    return concatenate_datasets([first, *others])


def _list(rows: Any) -> str:
    return ", ".join(f"{key} ({_type(one)})" for key, one in rows.features.items())


def _type(feature: Any) -> str:
    from datasets import Value

    return feature.dtype if isinstance(feature, Value) else type(feature).__name__


def _image_column(name: str, rows: Any) -> str:
    """Returns the name of the image: "image", or the only column of its type."""
    from datasets import Image

    images = [key for key, one in rows.features.items() if isinstance(one, Image)]
    if "image" in images:
        return "image"
    if len(images) != 1:
        raise CwpsError(f"{name} has {len(images)} columns of images, none of them 'image': {_list(rows)}")
    return images[0]


def _classes(
    name: str, rows: Any, label: str, training: bool
) -> tuple[Sequence[str], Mapping[Any, int] | None, str]:
    """Returns the names of a split's classes, the number of each label, and a note about them."""
    from datasets import ClassLabel

    feature = rows.features[label]
    if isinstance(feature, ClassLabel):
        return feature.names, None, ""
    kind = _type(feature)
    text = kind in ("string", "large_string")
    if not text and not kind.startswith(("int", "uint")):
        raise CwpsError(f"config.label = {label!r}: {name} has {kind} there, not classes, numbers or text")
    found = sorted(one for one in rows.unique(label) if one is not None)
    if not text and found and found[0] < 0:
        raise CwpsError(
            f"config.label = {label!r}: {name} has the number {found[0]} there, which marks images without a "
            "label; take a split that has labels, or remove these rows"
        )
    if training and len(found) == len(rows) > 1:
        raise CwpsError(
            f"config.label = {label!r}: {name} has another value there for each of its {len(rows)} images; "
            "name a column of classes"
        )
    numbers = {one: number for number, one in enumerate(found)}
    return [str(one) for one in found], numbers, "" if text else not_from_zero(found)


def _names_files(rows: Any, image: str) -> bool:
    """Returns whether any image is a file beside the data set."""
    import pyarrow.compute

    return pyarrow.compute.struct_field(rows.data.column(image), "bytes").null_count > 0
