"""From sources to a task: the pass over them, validation, few-shot draws, and what is refused."""

import dataclasses
import io

import cv2
import numpy as np
import pytest
from PIL import Image

from cwps_jax.config import DataConfig
from cwps_jax.data.cache import open_cache
from cwps_jax.data.check import check_task
from cwps_jax.data.load import load_sources, load_task
from cwps_jax.data.scan import scan
from cwps_jax.data.source import ArraySource, Opener, Record
from cwps_jax.data.split import ArraySplit, ImageSplit
from cwps_jax.errors import CwpsError

SETTINGS = DataConfig(data="folders", image_size=8, resize=8, cache="none", cache_dir="", reader_threads=2)
CLASSES = ("cat", "dog", "elk")


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (10, 12, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class FileSource:
    """Encoded images in memory; it counts how often it is read."""

    fingerprint = ""

    def __init__(self, name, contents, labels, classes=CLASSES):
        self.name, self.contents, self.labels, self.classes = name, contents, labels, classes
        self.reads = 0

    def __len__(self):
        return len(self.contents)

    def __getitem__(self, index):
        self.reads += 1
        return Record(self.contents[index], self.labels[index])

    def describe(self, index):
        return f"{self.name}/{index}.png"


def files(name, count, seed=0, **options):
    return FileSource(
        name, [png(1000 * seed + n) for n in range(count)], [n % 3 for n in range(count)], **options
    )


def opener(**splits):
    return Opener(lambda settings, task, split: splits[split], lambda settings, task: tuple(splits))


def contents(split: ImageSplit) -> set[bytes]:
    return {split.source[int(item)].image for item in split.items}


@pytest.fixture
def splits():
    return {"train": files("train", 60), "test": files("test", 12, seed=1)}


def test_validation_is_a_tenth_of_each_class_by_content(splits):
    task = load_task(opener(**splits), SETTINGS, "t")
    assert np.bincount(task.validation.fields["label"]).tolist() == [2, 2, 2]
    assert [len(split) for split in (task.train, task.validation, task.test)] == [54, 6, 12]
    assert not contents(task.train) & contents(task.validation)
    turned = FileSource("train", splits["train"].contents[::-1], splits["train"].labels[::-1])
    again = load_task(opener(train=turned, test=splits["test"]), SETTINGS, "t")
    assert contents(again.validation) == contents(task.validation)


def test_a_data_sets_own_validation_split_is_used_unless_it_is_used_otherwise(splits):
    own = {**splits, "validation": files("validation", 9, seed=2)}
    task = load_task(opener(**own), SETTINGS, "t")
    assert [len(split) for split in (task.train, task.validation, task.test)] == [60, 9, 12]
    as_test = dataclasses.replace(SETTINGS, test_split="validation")
    task = load_task(opener(**own), as_test, "t")
    assert [len(split) for split in (task.train, task.validation, task.test)] == [54, 6, 9]
    named = dataclasses.replace(SETTINGS, validation_split="test", test_split="validation")
    assert len(load_task(opener(**own), named, "t").validation) == 12


def test_shots_are_drawn_by_the_seed_whatever_the_order_of_files(splits):
    few = dataclasses.replace(SETTINGS, shots=4)
    draws = [load_task(opener(**splits), few, "t", seed=seed) for seed in (0, 0, 1)]
    assert all(np.bincount(task.train.fields["label"]).tolist() == [4, 4, 4] for task in draws)
    assert contents(draws[0].train) == contents(draws[1].train) != contents(draws[2].train)
    whole = load_task(opener(**splits), SETTINGS, "t")
    for task in draws:
        assert contents(task.validation) == contents(whole.validation)
        assert contents(task.test) == contents(whole.test)
    turned = FileSource("train", splits["train"].contents[::-1], splits["train"].labels[::-1])
    again = load_task(opener(train=turned, test=splits["test"]), few, "t", seed=0)
    assert contents(again.train) == contents(draws[0].train)


def test_fewer_than_the_shots_is_refused_by_class(splits):
    splits["train"].labels[2::3] = [2] * 3 + [0] * 17
    with pytest.raises(CwpsError, match="shots = 4: class 'elk' of task 't' has only 2 training images"):
        load_task(opener(**splits), dataclasses.replace(SETTINGS, shots=4), "t")


@pytest.mark.parametrize("broken", [b"", b"no image", png(0)[:80]])
def test_an_unreadable_file_is_named_and_refused_or_skipped_and_counted(splits, broken):
    splits["train"].contents[7] = splits["train"].contents[30] = broken
    with pytest.raises(CwpsError, match=r"train/7\.png: not a readable image \(.*\), nor are 1 others"):
        load_task(opener(**splits), SETTINGS, "t")
    task = load_task(opener(**splits), dataclasses.replace(SETTINGS, unreadable="skip"), "t")
    assert len(task.train) + len(task.validation) == 58
    assert not {7, 30} & {*task.train.items, *task.validation.items}
    assert task.note == "3 classes; train 58 images (2 unreadable ones skipped), test 12 images"


def test_what_cannot_even_be_read_is_treated_alike(splits):
    class Broken(FileSource):
        def __getitem__(self, index):
            if index == 7:
                raise CwpsError("the archive is broken there")
            return super().__getitem__(index)

    broken = Broken("train", splits["train"].contents, splits["train"].labels)
    with pytest.raises(
        CwpsError, match=r"train/7\.png: not a readable image \(the archive is broken there\)"
    ):
        load_task(opener(train=broken, test=splits["test"]), SETTINGS, "t")
    task = load_task(
        opener(train=broken, test=splits["test"]), dataclasses.replace(SETTINGS, unreadable="skip"), "t"
    )
    assert len(task.train) + len(task.validation) == 59


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_that_are_no_class_are_refused(splits, label):
    splits["test"].labels[5] = label
    with pytest.raises(CwpsError, match=f"test: label {label} of item 5: must be from 0 to 2"):
        load_task(opener(**splits), SETTINGS, "t")


def test_other_classes_and_empty_splits_are_refused(splits):
    other = files("test", 6, classes=("cat", "dog", "eel"))
    with pytest.raises(CwpsError, match="t: test has other classes than the training data: 'eel' is"):
        load_task(opener(**{**splits, "test": other}), SETTINGS, "t")
    with pytest.raises(CwpsError, match="test: split 'test' of task 't' is empty"):
        load_task(opener(**{**splits, "test": files("test", 0)}), SETTINGS, "t")


def test_a_source_that_has_not_changed_is_looked_through_once(tmp_path, splits):
    source = splits["train"]
    source.fingerprint = "one"
    source.contents[3] = b"broken"
    first = scan(source, cache_dir=str(tmp_path), threads=3)
    reads = source.reads
    again = scan(source, cache_dir=str(tmp_path), threads=1)
    assert source.reads == reads == 60
    np.testing.assert_array_equal(first.labels, again.labels)
    np.testing.assert_array_equal(first.digests, again.digests)
    assert first.unreadable == again.unreadable and list(first.unreadable) == [3]
    source.fingerprint = "two"
    scan(source, cache_dir=str(tmp_path), threads=1)
    assert source.reads == 2 * reads
    for stored in tmp_path.rglob("*.safetensors"):
        stored.write_bytes(stored.read_bytes()[:-30])
    with pytest.raises(CwpsError, match=r"\.safetensors: cannot be read .*; remove it"):
        scan(source, cache_dir=str(tmp_path))


def test_real_numbers_go_into_the_model_as_they_are():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(30, 4, 4, 1)).astype(np.float32)
    labels = np.arange(30) % 3
    source = ArraySource(images, labels, CLASSES)
    task = load_task(opener(train=source, test=source), SETTINGS, "t")
    assert isinstance(task.train, ArraySplit) and not task.train.threads
    np.testing.assert_array_equal(task.test["image"], images)
    with pytest.raises(CwpsError, match="config.flip = True: the images of arrays go into the model as"):
        load_task(opener(train=source, test=source), dataclasses.replace(SETTINGS, flip=True), "t")


def test_arrays_of_bytes_go_through_the_transforms():
    images = np.random.default_rng(0).integers(0, 256, (30, 16, 8, 3), np.uint8)
    source = ArraySource(images, np.arange(30) % 3, CLASSES)
    task = load_sources({"train": source, "test": source}, SETTINGS)
    with pytest.raises(CwpsError, match="mine has no split 'test', only train"):
        load_sources({"train": source}, SETTINGS, name="mine")
    batch = task.test.read(np.arange(30), None)
    np.testing.assert_array_equal(batch["image"], images[:, 4:12])


def test_arrays_of_another_type_or_length_are_refused():
    with pytest.raises(CwpsError, match="images are float64"):
        ArraySource(np.zeros((2, 4, 4, 1)), np.zeros(2, int), CLASSES)
    with pytest.raises(CwpsError, match="2 images but 3 labels"):
        ArraySource(np.zeros((2, 4, 4, 1), np.uint8), np.zeros(3, int), CLASSES)


def test_a_box_is_part_of_what_the_cache_knows_an_image_by(splits, tmp_path):
    class Boxed(FileSource):
        box = (0.0, 0.0, 1.0, 1.0)

        def __getitem__(self, index):
            return super().__getitem__(index)._replace(box=self.box)

    train, test = splits["train"], splits["test"]
    boxed = Boxed("test", test.contents, test.labels)
    boxed.box = (0.25, 0.0, 0.75, 0.5)
    cache = open_cache("memory", tmp_path, 10**9)
    for source in (test, boxed, test):
        split = load_task(opener(train=train, test=source), SETTINGS, "t", cache=cache).test
        plain = load_task(opener(train=train, test=source), SETTINGS, "t").test
        for one, other in zip(*(s.read(np.arange(12), None)["image"] for s in (split, plain)), strict=True):
            np.testing.assert_array_equal(one, other)
    boxed.box = (0.5, 0.0, 0.5, 1.0)
    with pytest.raises(CwpsError, match=r"test/0\.png: .*its box \(0\.5, 0\.0, 0\.5, 1\.0\) is none"):
        load_task(opener(train=train, test=boxed), SETTINGS, "t")


def deep(bits, seed, count=12, kind="PNG"):
    """Returns images of 16 bits whose values use `bits` of them, and the same in 8 bits."""
    rng = np.random.default_rng(seed)
    contents, shown = [], []
    kind, _, colours = kind.partition(" of ")
    for _ in range(count):
        levels = rng.integers(0, 2**bits, (8, 8, 3 if colours else 1), dtype=np.uint16)
        levels[0, 0] = 2**bits - 1
        if colours:
            contents.append(cv2.imencode(f".{kind.lower()}", levels[:, :, ::-1])[1].tobytes())
        else:
            buffer = io.BytesIO()
            Image.fromarray(levels[:, :, 0]).save(buffer, kind)
            contents.append(buffer.getvalue())
        shown.append((np.broadcast_to(levels, (8, 8, 3)) >> (bits - 8)).astype(np.uint8))
    return contents, np.stack(shown)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PNG of colours", "TIFF of colours"])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_images_of_16_bits_are_scaled_by_what_they_use_or_refused(bits, kind):
    """In training, in evaluation and through the cache alike."""
    (train, shown), (test, _) = deep(bits, 0, 60, kind), deep(10, 1, kind=kind)
    labels = [n % 3 for n in range(60)]
    sources = opener(train=FileSource("train", train, labels), test=FileSource("test", test, labels[:12]))
    if bits < 16:
        line = rf"t: its 16-bit images have values up to {2**bits - 1:,} only: set config.image_bits={bits} "
        with pytest.raises(CwpsError, match=line):
            load_task(sources, SETTINGS, "t")
    if bits == 8:
        with pytest.raises(CwpsError, match="values up to 1,023, more than 8 bits hold: set .*image_bits=10"):
            load_task(sources, dataclasses.replace(SETTINGS, image_bits=8), "t")
    else:
        for cache in (None, open_cache("memory", "", 10**9)):
            chosen = dataclasses.replace(SETTINGS, image_bits=bits if bits < 16 else 0)
            task = load_task(sources, chosen, "t", cache=cache)
            expected = shown[task.train.items]
            for draws in (None, np.zeros((len(task.train), task.train.draws))):
                np.testing.assert_array_equal(
                    task.train.read(np.arange(len(task.train)), draws)["image"], expected
                )


def test_images_that_are_all_one_value_are_refused(splits):
    dark = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save(dark, "PNG")
    splits["train"].contents = [dark.getvalue()] * 60
    with pytest.raises(CwpsError, match="every pixel of its 60 training images has the value 0 of 0 to 255"):
        load_task(opener(**splits), dataclasses.replace(SETTINGS, image_bits=16), "t")
    report = check_task(SETTINGS, "t", opener(**splits), batch_size=8)
    assert [one.kind for one in report.findings if one.stops] == ["value range"]


def test_a_git_lfs_pointer_is_called_so(splits):
    splits["test"].contents[1] = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    with pytest.raises(CwpsError, match=r"test/1.png: .*a Git-LFS pointer, not the image itself; run `git "):
        load_task(opener(**splits), SETTINGS, "t")
