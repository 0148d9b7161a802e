"""The dry pass over a task's data: each fault that is put in is found and named, and nothing else is."""

import dataclasses
import io
import itertools
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cwps_jax import data, load_backbone, save_backbone
from cwps_jax.config import DataConfig, RunConfig
from cwps_jax.data.check import check_task
from cwps_jax.data.findings import TaskReport
from cwps_jax.data.source import Opener, Record
from cwps_jax.errors import CwpsError

ROOT = pathlib.Path(__file__).parent.parent
CLASSES = ("cat", "dog", "emu")
TRAIN, TEST = 20, 5  # images a class
SETTINGS = DataConfig(cache_dir="")


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@dataclasses.dataclass
class Stored:
    """A split in memory that a test can break."""

    name: str
    records: list[Record]
    classes: tuple[str, ...] = CLASSES
    fingerprint: str = ""

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]

    def describe(self, index: int) -> str:
        return f"{self.name}/{index}"

    def change(self, index: int, **values: object) -> None:
        self.records[index] = self.records[index]._replace(**values)

    def copy(self, index: int, *indices: int, source: "Stored") -> None:
        for one in (index, *indices):
            self.records[one] = self.records[one]._replace(image=source.records[one].image)


Splits = dict[str, Stored]


@pytest.fixture
def splits() -> Splits:
    """Three classes; item i has label i % 3; no image is there twice."""
    return {
        name: Stored(name, [Record(png(1000 * number + i), i % 3) for i in range(3 * count)])
        for number, (name, count) in enumerate((("train", TRAIN), ("test", TEST)))
    }


def checked(splits: Splits, settings: DataConfig = SETTINGS, batch_size: int = 16) -> TaskReport:
    def open_split(settings: DataConfig, task: str, split: str) -> Stored:
        if split not in splits:
            raise CwpsError(f"{task} has no split {split!r}")
        return splits[split]

    opener = Opener(open_split, lambda settings, task: tuple(splits))
    return check_task(settings, "zoo", opener, batch_size=batch_size)


def told(report: TaskReport) -> list[tuple[str, str]]:
    return [("problem" if one.stops else "warning", one.line()) for one in report.findings]


def images(report: TaskReport) -> dict[str, int]:
    return {split.role: split.images for split in report.splits}


def test_clean_data_has_no_findings_and_is_counted_as_a_run_uses_it(splits):
    splits["train"].records += [Record(png(5000 + i), 1) for i in range(10)]
    report = checked(splits)
    assert report.findings == ()
    # A tenth of each class, 2 of 20 and 3 of 30, validates.
    assert images(report) == {"train": 63, "validation": 7, "test": 15}
    train, validation, test = report.splits
    assert (train.smallest, train.largest) == (("cat", 18), ("dog", 27))
    assert (validation.split, validation.smallest, validation.largest) == ("train", ("cat", 2), ("dog", 3))
    assert [(one.classes, one.all_classes, one.unreadable) for one in report.splits] == [(3, 3, 0)] * 3
    assert (test.smallest, test.largest) == (("cat", 5), ("cat", 5))


def truncate(splits: Splits) -> None:
    content = splits["train"].records[7].image
    splits["train"].change(7, image=content[: len(content) // 2])


def no_image(splits: Splits) -> None:
    splits["test"].change(3, image=b"<html>not found</html>")
    splits["test"].change(4, image=b"")


def no_label(splits: Splits) -> None:
    splits["test"].change(2, label=-1)


def labels_from_one(splits: Splits) -> None:
    for row in range(3 * TRAIN):
        splits["train"].change(row, label=row % 3 + 1)


def no_dogs_to_test(splits: Splits) -> None:
    splits["test"].records = [record for record in splits["test"].records if record.label != 1]


def one_dog_to_train(splits: Splits) -> None:
    dogs = [record for record in splits["train"].records if record.label == 1]
    splits["train"].records = [record for record in splits["train"].records if record.label != 1] + dogs[:1]


def empty_test(splits: Splits) -> None:
    splits["test"].records.clear()


def nothing_readable(splits: Splits) -> None:
    for row in range(3 * TEST):
        splits["test"].change(row, image=b"x")


def no_test(splits: Splits) -> None:
    del splits["test"]


def train_in_test(splits: Splits) -> None:
    splits["test"].copy(0, 4, source=splits["train"])
    splits["test"].records.append(splits["train"].records[4])  # once more


def train_in_validation(splits: Splits) -> None:
    splits["validation"] = Stored("validation", [Record(png(9000 + i), i % 3) for i in range(6)])
    splits["validation"].copy(5, source=splits["train"])


def twice_in_train(splits: Splits) -> None:
    splits["train"].change(9, image=splits["train"].records[3].image)
    splits["train"].change(12, image=splits["train"].records[3].image)


def two_labels(splits: Splits) -> None:
    for row in (1, 4):
        splits["test"].change(row, image=splits["train"].records[2].image)


def another_order(splits: Splits) -> None:
    splits["test"].classes = CLASSES[::-1]
    for row, record in enumerate(splits["test"].records):
        splits["test"].change(row, label=2 - record.label)
    splits["test"].copy(0, source=splits["train"])  # of the same class by its name


def other_classes(splits: Splits) -> None:
    splits["test"].classes = ("cat", "dog", "fox")


@pytest.mark.parametrize(
    ("break_it", "findings"),
    [
        (truncate, [("problem", "train: 1 image cannot be decoded: train/7 (")]),
        (no_image, [("problem", "test: 2 images cannot be decoded: test/3 (")]),
        (no_label, [("problem", "test: 1 label not from 0 to 2: test/2 (label -1)")]),
        (
            labels_from_one,
            [
                ("problem", "train: 20 labels not from 0 to 2: train/2 (label 3), train/5 (label 3), "),
                ("warning", "train: 1 class without an image: cat"),
            ],
        ),
        (no_dogs_to_test, [("warning", "test: 1 class without an image: dog")]),
        (one_dog_to_train, [("warning", "validation: 1 class without an image: dog")]),
        (empty_test, [("problem", "test is empty")]),
        (nothing_readable, [("problem", "test: none of its 15 images can be used")]),
        (no_test, [("problem", "zoo has no split 'test'")]),
        (
            train_in_test,
            [("warning", "test: 3 of 16 images also in train: test/0 = train/0, test/4 = train/4, ")],
        ),
        (train_in_validation, [("warning", "validation: 1 of 6 images also in train: validation/5 = t")]),
        (
            twice_in_train,
            [("warning", "train: 2 images stored more than once: train/9 = train/3, train/12 = train/3")],
        ),
        (
            two_labels,
            [
                ("warning", "test: 2 of 15 images also in train: test/1 = train/2, test/4 = train/2"),
                ("warning", "1 image of more than one class: train/2 (emu) = test/1 (dog)"),
            ],
        ),
        (another_order, [("warning", "test: 1 of 15 images also in train: test/0 = train/0")]),
        (other_classes, [("problem", "test has other classes than the training data: 'fox' is not among")]),
    ],
)  # fmt: skip
def test_each_fault_is_found_and_named_and_nothing_else(splits, break_it, findings):
    break_it(splits)
    found = told(checked(splits))
    assert [kind for kind, _ in found] == [kind for kind, _ in findings], found
    for (_, line), (_, expected) in zip(found, findings, strict=True):
        assert line.startswith(expected)
        assert "\n" not in line


def test_what_cannot_be_used_is_not_counted(splits):
    truncate(splits)
    no_label(splits)
    report = checked(splits)
    assert images(report) == {"train": 53, "validation": 6, "test": 14}
    assert [one.unreadable for one in report.splits] == [1, 0, 0]


def test_one_split_that_cannot_be_opened_does_not_hide_the_others(splits):
    no_test(splits)
    truncate(splits)
    report = checked(splits)
    assert [split.role for split in report.splits] == ["train", "validation"]
    assert len(report.findings) == 2


def test_a_task_that_cannot_be_opened_at_all_is_one_finding():
    def refuse(*given: object) -> tuple[str, ...]:
        raise CwpsError("no such folder: DATA")

    for opener in (Opener(refuse, refuse), Opener(refuse, lambda settings, task: ("train", "test"))):
        report = check_task(SETTINGS, "zoo", opener, batch_size=16)
        assert report.splits == () and told(report) == [("problem", "no such folder: DATA")]


def test_what_a_config_allows_is_no_problem(splits):
    truncate(splits)
    (finding,) = checked(splits, dataclasses.replace(SETTINGS, unreadable="skip")).findings
    assert not finding.stops and "skipped" in finding.text and "train/7" in finding.items[0]


def test_too_few_for_a_batch_or_for_the_shots(splits):
    assert told(checked(splits, batch_size=54)) == []
    (found,) = told(checked(splits, batch_size=55))
    assert found == (
        "problem",
        "train: config.batch_size = 55: only 54 images to train on; take a smaller one",
    )
    no_dogs_to_test(splits)  # a warning: told after the problem, though it is found before it
    assert [kind for kind, _ in told(checked(splits, batch_size=55))] == ["problem", "warning"]
    splits["test"].records.append(Record(png(8000), 1))
    # Few-shot training fits the batch to the data.
    shots = dataclasses.replace(SETTINGS, shots=18)
    assert told(checked(splits, shots, batch_size=55)) == []
    splits["train"].records.pop(0)
    (found,) = told(checked(splits, shots, batch_size=55))
    assert found[0] == "problem" and found[1].endswith("fewer images besides those for validation: cat (17)")


def test_its_own_validation_split_leaves_all_of_train_to_train_on(splits):
    splits["validation"] = Stored("validation", [Record(png(9000 + i), i % 3) for i in range(9)])
    assert images(checked(splits)) == {"train": 60, "validation": 9, "test": 15}
    # Trained on as well, it is no validation split.
    splits["train+validation"] = Stored("train+validation", splits["train"].records)
    joined = checked(splits, dataclasses.replace(SETTINGS, train_split="train+validation"))
    assert images(joined) == {"train": 54, "validation": 6, "test": 15}


def test_a_long_list_is_cut_in_the_line_and_whole_in_the_report(splits):
    for row in range(42):
        splits["train"].change(row, image=b"x")
    finding = next(one for one in checked(splits).findings if one.kind == "unreadable")
    assert finding.line().endswith(", and 37 more") and "train/4 (" in finding.line()
    assert "train/5 (" not in finding.line()
    assert len(finding.items) == 42


def test_the_embedded_data_is_sound():
    for task in ("digits", "loops"):
        report = check_task(SETTINGS, task, data.SOURCES["digits"], batch_size=64)
        assert not [finding for finding in report.findings if finding.stops]
        assert "shared images" not in {finding.kind for finding in report.findings}
        assert sum(images(report).values()) == {"digits": 1797, "loops": 1797 - 181}[task]


def test_progress_reaches_the_number_of_images(splits):
    seen: list[tuple[str, int, int]] = []
    opener = Opener(lambda settings, task, split: splits[split], lambda settings, task: tuple(splits))
    check_task(SETTINGS, "zoo", opener, batch_size=16, observe=lambda *given: seen.append(given))
    assert {(split, total) for split, _, total in seen} == {("train", 60), ("test", 15)}
    assert sum(count for _, count, _ in seen) == 75


def check_from_the_command_line(
    root: pathlib.Path, tasks: tuple[str, ...], *flags: str
) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "cwps_jax.data", "configs/pacs.py", f"--config.data_dir={root / 'data'}"]
    command += [f"--config.cache_dir={root / 'cache'}", f"--config.tasks={tasks}", *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_the_command_finds_tells_and_ends_with_a_status(tmp_path):
    """Twice: with a truncated file and a task that is not there, then mended, with one that is shared."""
    seeds = itertools.count()
    for task, (split, count), label in itertools.product(
        ("photo", "sketch"), (("train", 20), ("test", 5)), range(2)
    ):
        folder = tmp_path / "data" / task / split / f"class [{label}]"
        folder.mkdir(parents=True)
        for number in range(count):
            (folder / f"{number}.png").write_bytes(png(next(seeds)))
    broken = tmp_path / "data" / "sketch" / "train" / "class [1]" / "3.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:40])

    flag = f"--json={tmp_path / 'found.json'}"
    done = check_from_the_command_line(tmp_path, ("photo", "sketch", "absent"), flag)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[-1] == "2 problems"
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("problem: sketch: ")]
    assert "1 image cannot be decoded" in line and str(broken) in line
    assert any("absent" in line for line in done.stdout.splitlines() if line.startswith("problem: absent: "))
    assert "18 (class [0])" in done.stdout  # brackets are no markup
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["format"], found["problems"], found["warnings"]) == (1, 2, 0)
    by_task = {task["task"]: task for task in found["tasks"]}
    assert [split["images"] for split in by_task["photo"]["splits"]] == [36, 4, 10]
    assert [one["kind"] for one in by_task["sketch"]["findings"]] == ["unreadable"]

    broken.write_bytes(whole)
    test_image = tmp_path / "data" / "photo" / "test" / "class [0]" / "0.png"
    test_image.write_bytes((tmp_path / "data" / "photo" / "train" / "class [0]" / "0.png").read_bytes())
    (tmp_path / "data" / "photo" / "valid").mkdir()
    save_backbone(tmp_path / "w.safetensors", "resnet20_cifar", load_backbone("resnet20_cifar")[1])
    done = check_from_the_command_line(
        tmp_path, ("photo", "sketch"), f"--config.weights={tmp_path / 'w.safetensors'}"
    )
    assert (done.returncode, done.stderr) == (0, "")
    *_, warning, unused, verdict = done.stdout.splitlines()
    assert warning.startswith("warning: photo: test: 1 of 10 images also in train: ")
    expected = "warning: photo: split 'valid' is not used; config.validation_split=valid uses it"
    assert str(test_image) in warning and unused == expected and verdict == "ok, 2 warnings"


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"weights": "nowhere.safetensors"}, "no such weights file"),
        ({"backbone": "resnet9"}, "backbone 'resnet9' is not known"),
        ({"budget": 0.001}, "norms and other private parameters alone cost"),
        ({"head": "haed"}, "haed"),
        ({"epochs": 2}, "epochs = 2"),
    ],
)
def test_what_stops_the_run_beside_its_data_is_found_by_the_same_preparation(values, line):
    from cwps_jax.data.__main__ import check

    own = {"tasks": ("negative",), "source": "digits", "cache_dir": "", **values}
    (*_, found) = check(RunConfig(**own))
    (finding,) = found.findings
    assert found.task == "the run" and finding.stops and line in finding.text


def test_images_that_use_little_of_the_range_are_told_of(splits):
    """Such as colours that another program has cut to the upper bits of a range that they do not use."""
    for row in range(3 * TRAIN):
        pixels = np.random.default_rng(row).integers(0, 16, (6, 5, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        splits["train"].change(row, image=buffer.getvalue())
    line = "train: no pixel is below 0 or above 15 of 0 to 255; store the images with their whole range"
    assert told(checked(splits)) == [("warning", line)]


def test_no_image_to_validate_on_is_a_problem(splits):
    splits["train"].records = splits["train"].records[:3]
    findings = checked(splits, batch_size=3).findings
    texts = [one.text for one in findings if one.stops]
    assert any("train: no class has a second image to validate on" in text for text in texts)
    splits["validation"] = Stored("validation", [Record(png(9000 + i), i % 3) for i in range(3)])
    assert told(checked(splits, batch_size=3)) == []


def test_splits_that_no_key_uses_are_named_with_the_key_that_would(splits):
    for name in ("valid", "Test", "extra"):
        splits[name] = Stored(name, [])
    assert told(checked(splits)) == [
        ("warning", f"split {name!r} is not used; {key} uses it")
        for name, key in {
            "valid": "config.validation_split=valid",
            "Test": "config.test_split=Test",
            "extra": "config.train_split=train+extra or config.validation_split=extra",
        }.items()
    ]
    used = dataclasses.replace(SETTINGS, validation_split="test", test_split="train")
    assert "'test'" not in str(told(checked(splits, used)))
