"""Split lists beside the tasks and inside them, in folders and archives, and the script that writes them."""

import dataclasses
import pathlib
import subprocess
import sys
import zipfile

import pytest
from test_folders import pack, png, write

from cwps_jax.config import DataConfig
from cwps_jax.data import folders
from cwps_jax.data.check import check_task
from cwps_jax.data.source import Opener
from cwps_jax.errors import CwpsError

SCRIPT = pathlib.Path(__file__).parent.parent / "scripts" / "make_split_lists.py"
CLASSES = ("The Mona Lisa", "cello", "train")  # DomainNet has a class called train, and a case of its own
IMAGES = {
    f"real/{label}/real {number}.png": png((90, 90, 90), 10 * number + position, (6, 6))
    for position, label in enumerate(CLASSES)
    for number in range(5)
}
NUMBERS = {"cello": 0, "train": 1, "The Mona Lisa": 2}


def lines(numbers: dict[str, int] | None, start: str = "real/", test: bool = False) -> str:
    """Returns a list: the last image of each class for testing, the others for training, in reverse."""
    chosen = [path.removeprefix("real/") for path in reversed(IMAGES) if path.endswith("4.png") == test]
    suffix = {path: f" {numbers[path.split('/')[0]]}" if numbers else "" for path in chosen}
    return "".join(f"{start}{path}{suffix[path]}\n" for path in chosen)


def settings(root: pathlib.Path) -> DataConfig:
    return DataConfig(data="folders", data_dir=str(root))


def read(root: pathlib.Path, split: str = "train") -> folders.FolderSource:
    return folders.open_split(settings(root), "real", split)


@pytest.mark.parametrize("numbers", [None, NUMBERS])
@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_lists_say_what_belongs_to_which_split(tmp_path, inside, archive, numbers):
    names = {split: f"real/{split}.txt" if inside else f"real_{split}.txt" for split in ("train", "test")}
    start = "" if inside else "real/"
    lists = {names[split]: lines(numbers, start, split == "test").encode() for split in names}
    contents = {**IMAGES, **(lists if inside else {})}
    if archive:
        pack(tmp_path / "domainnet.zip", contents, compression=zipfile.ZIP_DEFLATED)
    else:
        write(tmp_path, {**contents, "real/cello/.DS_Store": b"x", "real/README.txt": b"x"})
    if not inside:
        write(tmp_path, lists)
    assert folders.split_names(settings(tmp_path), "real") == ("train", "test")
    order = sorted(CLASSES) if numbers is None else sorted(numbers, key=lambda label: numbers[label])
    for split in ("train", "test"):
        source = read(tmp_path, split)
        expected = [path for path in reversed(IMAGES) if path.endswith("4.png") == (split == "test")]
        at = f"{tmp_path / 'domainnet.zip'}: " if archive else f"{tmp_path}/"
        assert source.classes == tuple(order)
        assert [source.describe(index) for index in range(len(source))] == [at + path for path in expected]
        for index, path in enumerate(expected):
            assert source[index] == (IMAGES[path], order.index(path.split("/")[1]), None, None)


@pytest.mark.parametrize("inside", [False, True])
def test_lists_that_no_key_uses_are_told_of_with_the_key_that_would(tmp_path, inside):
    """Beside them lies what is no list, and the lists of a task whose name begins alike."""
    start = "" if inside else "real/"
    lists = {
        f"real/{name}.txt" if inside else f"real_{name}.txt": lines(None, start, name != "train").encode()
        for name in ("train", "test", "dev", "Eval")
    }
    others = {
        "real_photo_train.txt": b"real_photo/x/1.png\n",
        "real_readme.txt": b"x",
        "real/README.txt": b"x",
    }
    write(tmp_path, {**IMAGES, **lists, **others})
    given = dataclasses.replace(settings(tmp_path), image_size=6, cache_dir="")
    assert folders.split_names(given, "real") == ("train", "test", "Eval", "dev")
    opener = Opener(folders.open_split, folders.split_names)

    def told(given: DataConfig) -> list[str]:
        report = check_task(given, "real", opener, batch_size=2)
        return [one.text for one in report.findings if one.kind == "unused split"]

    assert told(given) == [
        f"split {name!r} is not used; config.{key}={name} uses it"
        for name, key in (("Eval", "test_split"), ("dev", "validation_split"))
    ]
    assert told(dataclasses.replace(given, validation_split="dev", test_split="Eval")) == [
        "split 'test' is not used; config.test_split=test uses it"
    ]


def test_lists_written_on_windows_and_with_blank_lines_are_read(tmp_path):
    write(tmp_path, IMAGES)
    text = "\ufeff" + lines(NUMBERS).replace(" 1\n", "\t1\r\n\r\n")
    write(tmp_path, {"real_train.txt": text.encode(), "real_test.txt": lines(None, test=True).encode()})
    assert len(read(tmp_path)) == 12
    # The numbers of the training list are those of the classes, though the test list has none.
    assert [read(tmp_path, "test")[index].label for index in range(3)] == [1, 0, 2]


def test_numbers_that_leave_a_gap_are_the_order_which_is_said_and_have_to_agree(tmp_path):
    write(tmp_path, {**IMAGES, "real_train.txt": lines({**NUMBERS, "cello": 7}).encode()})
    assert read(tmp_path).classes == tuple(sorted(NUMBERS, key={**NUMBERS, "cello": 7}.get))
    assert read(tmp_path).note == "labels are stored as 3 numbers from 1 to 7, the order of the classes"


@pytest.mark.parametrize(
    ("train", "test", "line"),
    [
        (
            "real/cello/real 0.png 0\nreal/train/real 0.png 0",
            "",
            "real_train.txt, line 2: number 0 is class 'train'",
        ),
        (
            "real/cello/real 0.png 0\n\nreal/cello/real 1.png 1",
            "",
            "line 3: class 'cello' is number 1 here and 0",
        ),
        (
            "real/cello/real 0.png 0",
            "real/cello/real 1.png 2",
            "real_test.txt, line 1: class 'cello' is number 2",
        ),
        ("real/cello/real 0.png -1", "", "line 1: -1 is not the number of a class"),
        ("real/cello/real 0.png", "real/train/real 0.png", "class 'train' of test is not in train"),
        ("real/cello/real 9.png", "", "line 1: there is no file .*real/cello/real 9.png"),
        ("real/horn/real 0.png", "", "line 1: there is no file .*real/horn/real 0.png"),
        ("real/cello/real 0.png 0\nreal/cello/real 0.png 0", "", "line 2: .* a second time, see line 1"),
        ("clipart/cello/real 0.png 0", "", "line 1: 'clipart/cello/real 0.png' is not real/<class>/<file>"),
        ("cello/real 0.png", "", "line 1: .* is not real/<class>/<file>"),
        ("real/cello", "", "line 1: .* is not real/<class>/<file>"),
        ("real/../secret.png", "", "line 1: .* is not real/<class>/<file>"),
        ("real/cello/../../../secret.png", "", "line 1: .* is not real/<class>/<file>"),
        ("/real/cello/real 0.png", "", "line 1: .* is not real/<class>/<file>"),
        ("real\\cello\\real 0.png", "", "line 1: .* is not real/<class>/<file>"),
        ("\n", "", "split 'train' is empty"),
        (b"\xff\xfe\x00", "", "real_train.txt: not a text in UTF-8"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path, train, test, line):
    content = train if isinstance(train, bytes) else train.encode()
    write(tmp_path / "data", {**IMAGES, "real_train.txt": content, "real_test.txt": test.encode()})
    write(tmp_path, {"secret.png": IMAGES["real/cello/real 0.png"]})
    with pytest.raises(CwpsError, match=line) as caught:
        read(tmp_path / "data"), read(tmp_path / "data", "test")
    assert "\n" not in str(caught.value)


def test_without_lists_a_class_called_train_is_no_split(tmp_path):
    write(tmp_path, IMAGES)
    with pytest.raises(
        CwpsError, match="split 'train' is empty; .* lists <task>_<split>.txt, which scripts/make_"
    ):
        folders.open_split(
            DataConfig(data="folders", data_dir=str(tmp_path), test_split="train"), "real", "train"
        )
    write(tmp_path, {"real_train.txt": lines(None).encode()})
    with pytest.raises(CwpsError, match="real has no split 'test'; it has train"):
        read(tmp_path, "test")
    write(tmp_path, {"real/train.txt": lines(None, "").encode()})
    with pytest.raises(CwpsError, match="real_train.txt and .*real/train.txt both exist: remove one"):
        read(tmp_path)


def test_a_list_that_leads_out_of_the_folder_is_refused(tmp_path):
    write(tmp_path / "data", IMAGES)
    write(tmp_path, {"secret.txt": b"a secret"})
    (tmp_path / "data/real_train.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(CwpsError, match="real_train.txt: leads out of .*data") as caught:
        read(tmp_path / "data")
    assert "a secret" not in str(caught.value)


def script(root: pathlib.Path, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, root, *flags], capture_output=True, text=True, check=False)


def test_the_script_writes_lists_by_content(tmp_path):
    def made(root: pathlib.Path) -> dict[str, set[bytes]]:
        done = script(root, "--test-percent", "40")
        assert done.returncode == 0, done.stderr
        sources = {split: read(root, split) for split in ("train", "test")}
        assert sources["train"].classes == CLASSES
        return {
            split: {source[index].image for index in range(len(source))} for split, source in sources.items()
        }

    write(tmp_path / "a", {**IMAGES, "real/cello/Thumbs.db": b"x", "weights/w.bin": b"x"})
    write(tmp_path / "a", {"split/train/a/0.png": b"x", "split/test/a/0.png": b"x"})
    # The same images under other names, and one of them twice.
    renamed = {path.replace("real ", "z"): content for path, content in reversed(IMAGES.items())}
    write(tmp_path / "b", {**renamed, "real/cello/copy.png": IMAGES["real/cello/real 0.png"]})
    first, second = made(tmp_path / "a"), made(tmp_path / "b")
    assert first == second
    assert len(first["train"]) == 9 and len(first["test"]) == 6 and not first["train"] & first["test"]
    assert sorted(path.name for path in (tmp_path / "a").glob("*.txt")) == ["real_test.txt", "real_train.txt"]
    before = (tmp_path / "a/real_train.txt").read_bytes()
    assert "has its splits" in script(tmp_path / "a", "--test-percent", "20").stdout
    assert (tmp_path / "a/real_train.txt").read_bytes() == before


def test_the_script_says_what_it_cannot_split(tmp_path):
    write(tmp_path, {"real/cello/0.png": b"x", "real/cello/1.png": b"x"})
    assert "needs two different images" in script(tmp_path).stderr
    assert "no such folder" in script(tmp_path / "nowhere").stderr
    assert "between 0 and 100" in script(tmp_path, "--test-percent", "100").stderr
