"""Data sets that TensorFlow Datasets has prepared as array_record. TensorFlow itself is not needed."""

import dataclasses
import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cwps_jax.data.source import Record
from cwps_jax.errors import CwpsError
from cwps_jax.extras import check_extra
from cwps_jax.settings import DataConfig

BOX = "bbox"


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """One split; see `ImageSource`.

    Attributes:
        name: its name in messages.
        classes: names of the classes.
        fingerprint: data set, version, fields that are read, and the split's files with sizes and times.
        rows: TFDS's own random access, with encoded images.
        image, label, box: names of the fields that are read; no box for "".
    """

    name: str
    classes: Sequence[str]
    fingerprint: str
    rows: Sequence[dict[str, Any]]
    image: str
    label: str
    box: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        try:
            row = self.rows[index]
        except (OSError, RuntimeError) as error:
            raise self._broken(index, _line(error)) from error
        if row[self.label] is None:  # what array_record gives for an item beyond the end of a cut file
            raise self._broken(index, "it is empty")
        box = None
        if self.box:
            top, left, bottom, right = map(float, row[self.box])
            box = (left, top, right, bottom)
        return Record(row[self.image], int(row[self.label]), box)

    def describe(self, index: int) -> str:
        return f"{self.name}, item {index}"

    def _broken(self, index: int, why: str) -> CwpsError:
        return CwpsError(f"{self.describe(index)}: cannot be read ({why}); prepare the data set again")


def open_split(settings: DataConfig, task: str, split: str) -> TfdsSource:
    """Returns one split of a prepared data set; nothing is downloaded.

    Args:
        settings: `dataset` is a name such as "domainnet/{task}" or "cars196:2.1.0"; without a version the
            newest prepared one is taken. `label` is a ClassLabel of it. `data_dir` "" is TFDS's own default.
        task: the task's name.
        split: such as "train", "train+validation" or "train[:90%]".

    Raises:
        CwpsError: the package, the data set, the split or a field does not exist, or the data set is not
            prepared for random access.
    """
    builder = _builder(settings, task)
    from tensorflow_datasets import core, decode, features

    info = builder.info
    try:
        count = info.splits[split].num_examples
    except (KeyError, ValueError) as error:
        raise CwpsError(
            f"{info.full_name}: no split {split!r}; it has {', '.join(info.splits)}, and parts and sums of "
            "them such as 'train[:90%]' or 'train+test'"
        ) from error
    if not count:
        raise CwpsError(f"{info.full_name}: split {split!r} is empty")
    fields = dict(info.features.items())
    label = fields.get(settings.label)
    if not isinstance(label, features.ClassLabel):
        raise CwpsError(
            f"config.label = {settings.label!r}: no ClassLabel of {info.full_name}, which has {_list(fields)}"
        )
    image = _image_field(fields, info.full_name)
    if settings.box:
        _check_box(fields, info.full_name)
    if not info.available_file_formats() & core.FileFormat.with_random_access():
        raise CwpsError(
            f"{info.full_name} is in {builder.data_dir} as {info.file_format.value}; convert it: pip install "
            "tensorflow apache-beam mlcroissant && tfds convert_format --out_file_format=array_record "
            f"--dataset_version_dir={builder.data_dir}"
        )
    encoded = {key: decode.SkipDecoding() for key, one in fields.items() if isinstance(one, features.Image)}
    rows = builder.as_data_source(split, decoders=encoded)
    return TfdsSource(
        f"{info.full_name} {split}",
        label.names,
        "\n".join([info.full_name, image, settings.label, str(settings.box), *_files(info, split)]),
        rows,
        image,
        settings.label,
        BOX if settings.box else "",
    )


def split_names(settings: DataConfig, task: str) -> tuple[str, ...]:
    """Returns the names of a prepared data set's splits. Raises CwpsError like `open_split`."""
    return tuple(_builder(settings, task).info.splits)


def _builder(settings: DataConfig, task: str) -> Any:
    """Returns TFDS's builder of a prepared data set."""
    check_extra("tfds", "config.data = 'tfds'")
    import tensorflow_datasets as tfds

    name = settings.dataset.replace("{task}", task)
    where = f"config.dataset = {name!r}"
    data_dir = os.path.expanduser(settings.data_dir) or None
    if data_dir and "://" not in data_dir and not os.path.isdir(data_dir):
        raise CwpsError(f"config.data_dir = {settings.data_dir!r}: no such folder")
    try:
        parsed, options = tfds.core.naming.parse_builder_name_kwargs(name)
    except ValueError as error:
        raise CwpsError(f"{where}: must be as in domainnet/real or domainnet/real:1.0.0") from error
    if parsed.namespace:  # TFDS would ask the network
        raise CwpsError(
            f"{where}: community data sets cannot be read; give a name without {parsed.namespace}:"
        )
    options.setdefault("version", "*.*.*")
    try:
        builder = tfds.builder(parsed.name, data_dir=data_dir, try_gcs=False, **options)
    except (ValueError, AssertionError, TypeError, ImportError, OSError) as error:
        raise CwpsError(f"{where}: {_why(tfds, parsed.name, options.get('config'), error)}") from error
    if not builder.info.splits:
        place = f", data_dir={data_dir!r}" if data_dir else ""
        raise CwpsError(
            f"{where} is not prepared in {builder.data_dir}; prepare it (most sets need TensorFlow there): "
            f'python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}{place}, '
            "file_format='array_record').download_and_prepare()\""
        )
    return builder


def _why(tfds: Any, dataset: str, config: str | None, error: Exception) -> str:
    """Returns the reason why TFDS has no such builder, with the nearest names that it has."""
    known = tfds.list_builders(with_community_datasets=False)
    if dataset not in known:
        return "not known to TensorFlow Datasets, nor prepared in the data_dir" + _near(dataset, known)
    configs = tfds.builder_cls(dataset).builder_configs
    if config and config not in configs:
        return f"{dataset} has no {config!r}" + (_near(config, configs) or f"; it has {', '.join(configs)}")
    return _line(error).rpartition('}": ')[2]  # TFDS repeats what it was given, then says why


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 3)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _list(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} ({type(one).__name__})" for key, one in sorted(fields.items()))


def _image_field(fields: Mapping[str, Any], where: str) -> str:
    """Returns the name of the image: "image", or the only field of its type."""
    from tensorflow_datasets import features

    # Floats are stored bit by bit in a PNG of four channels, which no image decoder gives back.
    images = [
        key
        for key, one in fields.items()
        if isinstance(one, features.Image) and np.issubdtype(one.np_dtype, np.integer)
    ]
    if "image" in images:
        return "image"
    if len(images) != 1:
        raise CwpsError(f"{where} has {len(images)} images per record, none called 'image': {_list(fields)}")
    return images[0]


def _check_box(fields: Mapping[str, Any], where: str) -> None:
    from tensorflow_datasets import features

    box = fields.get(BOX)
    if not isinstance(box, features.BBoxFeature):
        raise CwpsError(f"config.box: {where} has no bounding box {BOX!r}, only {_list(fields)}")
    # None: prepared before TFDS wrote the order down.
    if box.bbox_format and box.bbox_format.value != "REL_YXYX":
        raise CwpsError(f"config.box: {where} has boxes as {box.bbox_format.value}; must be REL_YXYX")


def _files(info: Any, split: str) -> Iterator[str]:
    """Yields each file of a split, the part of it that is read, its size and its time."""
    for file in info.splits[split].file_instructions:
        stamp = ""
        if os.path.isfile(file.filename):  # not so on remote storage
            state = os.stat(file.filename)
            stamp = f"{state.st_size} {state.st_mtime_ns}"
        yield f"{os.path.basename(file.filename)}[{file.skip}:{file.skip + file.take}] {stamp}"


def _line(error: BaseException) -> str:
    """Returns the first line of an error of another library."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
