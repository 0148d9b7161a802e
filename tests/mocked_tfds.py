"""Data sets of TensorFlow Datasets with random images, made by its own mocks: no TensorFlow, no download."""

import contextlib
import functools
import io
import os
import zlib
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image

BOX = (0.125, 0.25, 0.75, 0.875)  # of every mocked image: ymin, xmin, ymax, xmax


@contextlib.contextmanager
def mocked_tfds(
    num_examples: int = 24, *, classes: int | None = 4, splits: Sequence[str] = ("train", "test")
) -> Iterator[None]:
    """Within it every data set is prepared, as array_record, with small random images; `data_dir` is ignored.

    An image depends on the data set, its split and its position, so no two are the same. Labels count
    through the classes: with 4, the sixth image is of class 1. Everything but the examples and the file that
    they would be in is TFDS's own: names, features, splits and their slices, parsing.

    Args:
        num_examples: of each split.
        classes: how many of a data set's classes there are; None for all.
        splits: their names.
    """
    pytest.importorskip("array_record")
    tfds = pytest.importorskip("tensorflow_datasets")
    from tensorflow_datasets.core import dataset_builder, dataset_info, file_adapters, naming
    from tensorflow_datasets.core import splits as splits_module
    from tensorflow_datasets.core.features import class_label_feature, image_feature

    read = dataset_builder.DatasetBuilder.as_data_source
    label = class_label_feature.ClassLabel
    names = label.names

    def made_splits(info: Any) -> Any:
        return splits_module.SplitDict(
            splits_module.SplitInfo(
                name=split,
                shard_lengths=[num_examples],
                num_bytes=0,
                filename_template=naming.ShardedFileTemplate(
                    data_dir=info.data_dir,
                    dataset_name=info.name,
                    split=split,
                    filetype_suffix="array_record",
                ),
            )
            for split in splits
        )

    def as_data_source(builder: Any, split: str, **options: Any) -> Any:
        reader = functools.partial(_Reader, builder.info.features, builder.info.full_name)
        with mock.patch("array_record.python.array_record_data_source.ArrayRecordDataSource", reader):
            return read(builder, split, **options)

    with (
        tfds.testing.mock_data(as_data_source_fn=as_data_source),
        mock.patch.object(dataset_info.DatasetInfo, "splits", property(made_splits)),
        mock.patch.object(
            dataset_info.DatasetInfo,
            "file_format",
            property(lambda info: file_adapters.FileFormat.ARRAY_RECORD),
        ),
        mock.patch.object(
            label, "names", property(lambda feature: names.fget(feature)[:classes], names.fset)
        ),
        mock.patch.object(label, "num_classes", property(lambda feature: len(feature.names))),
        mock.patch.object(image_feature._ImageEncoder, "_encode_image", _png),  # its own needs TensorFlow
    ):
        yield


class _Reader:
    """Stands for array_record's reader: serialised examples, made when they are read."""

    def __init__(self, features: Any, name: str, instructions: Sequence[Any]) -> None:
        self._features, self._name = features, name
        self._places = [
            (os.path.basename(file.filename), position)
            for file in instructions
            for position in range(file.skip, file.skip + file.take)
        ]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> bytes:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.testing.mocking import RandomFakeGenerator

        file, position = self._places[index]
        seed = zlib.crc32(f"{self._name} {file} {position}".encode())
        example = RandomFakeGenerator(self._features, 1, seed=seed)[0]
        for key, feature in self._features.items():
            if isinstance(feature, tfds.features.ClassLabel):
                example[key] = position % len(feature.names)
            elif isinstance(feature, tfds.features.BBoxFeature):
                example[key] = np.array(BOX)
        return self._features.serialize_example(example)


def _png(encoder: Any, image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
    return file.getvalue()
