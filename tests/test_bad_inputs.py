"""What a user can get wrong, through the real doors: one line, no traceback, nothing changed on disk.

One process imports the programs once and forks for each case, which would else take seconds to start.
"""

import dataclasses
import errno
import functools
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from types import SimpleNamespace

import compiling
import numpy as np
import pytest
from PIL import Image

from cwps_jax import command_line, load_backbone, save_backbone
from cwps_jax.compilation_cache import start_jax
from cwps_jax.data.cache import open_cache
from cwps_jax.data.scan import scan
from cwps_jax.data.source import ArraySource

ROOT = pathlib.Path(__file__).parent.parent
FORKED = """
import json, os, sys, traceback
import grain, scipy.ndimage, sklearn.datasets  # what the digits need, once and not in each child
import cwps_jax.run
import cwps_jax.data.__main__ as check
from cwps_jax import command_line, main

for case in json.load(sys.stdin):
    child = os.fork()
    if not child:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{case['log']}.{name}", os.O_WRONLY | os.O_CREAT), number)
        sys.argv = ["cwps", *case["flags"]]
        status = 0
        try:
            main.run() if case["door"] == "main" else command_line.run(check.main)
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            traceback.print_exc()
            status = 99
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
FOLDERS = """
from cwps_jax.config import default_config

def get_config():
    config = default_config()
    config.data, config.image_size, config.batch_size = "folders", 8, 4
    config.source, config.tasks = "zoo", ("zoo",)
    return config
"""


def picture(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def noise(seed: int) -> bytes:
    return picture(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8))


def zoo(root: pathlib.Path) -> pathlib.Path:
    """Writes a sound task of two classes, and returns its folder."""
    for number in range(20):
        label, split = ("cat", "dog")[number % 2], "test" if number > 15 else "train"
        path = root / "data" / "zoo" / split / label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise(number))
    return root / "data" / "zoo"


def every_image(task: pathlib.Path, content: bytes) -> None:
    for path in (task / "train").rglob("*.png"):
        path.write_bytes(content)


def only_one_image(task: pathlib.Path) -> None:
    for path in sorted((task / "train").rglob("*.png"))[1:]:
        path.unlink()
    (task / "train" / "dog").rmdir()
    (task / "test" / "dog" / "17.png").unlink()
    (task / "test" / "dog" / "19.png").unlink()
    (task / "test" / "dog").rmdir()


def into(path: str, content: bytes = b"") -> Callable[[pathlib.Path], None]:
    def write(task: pathlib.Path) -> None:
        (task / path).parent.mkdir(parents=True, exist_ok=True)
        (task / path).write_bytes(content)

    return write


def linked_out(task: pathlib.Path) -> None:
    (task / "train" / "cat" / "out.png").symlink_to(task.parents[1] / "folders.py")


def renamed(task: pathlib.Path) -> None:
    (task / "test").rename(task / "Test")


def listed(task: pathlib.Path) -> None:
    (task / "train.txt").write_text("cat/nowhere.png 0\n")
    (task / "test.txt").write_text("cat/nowhere.png 0\n")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
DARK = picture(np.arange(0, 4096, 64, dtype=np.uint16).reshape(8, 8))
FLAT = picture(np.full((8, 8), 7, np.uint8))
W = "--config.weights={root}/w.safetensors"


@dataclasses.dataclass(frozen=True)
class Case:
    """Flags after a config, what they are refused with, and what is done to the folder of a task before."""

    flags: tuple[str, ...]
    line: str
    change: Callable[[pathlib.Path], None] | None = None


DIGITS = [
    Case(("--config.lambda_=0.3",), "config.lambda_ is not known; did you mean config.cwps.lambda_?"),
    Case(("--config.cwps.lamda_=0.3",), "config.cwps.lamda_ is not known"),
    Case(("--config.cwps.lambda_=1.1",), "config.cwps.lambda_ = 1.1: must be in [0, 1]"),
    Case(("--config.epochs=2",), "config.epochs = 2: cwps needs at least 3"),
    Case(("--config.epochs=many",), "--config.epochs=many"),
    Case(("--config.learning_rate=-1",), "config.learning_rate = -1.0: must be at least 0"),
    Case(("--config.tasks=('birds',)",), "the digits have no task 'birds'"),
    Case(("--config.tasks=()",), "config.tasks is empty"),
    Case(("--config.tasks=one,two",), "names are written as --config.tasks="),
    Case(("--config.tasks=('loops','loops')",), "config.tasks names 'loops' twice"),
    Case(("--config.tasks=('pretrained',)",), "the pre-trained model's own name"),
    Case(("--config.tasks=('a/b',)",), "cannot be a task's name"),
    Case(("--config.compare=('fintune',)",), "fintune"),
    Case(("--config.metrics=('wanb',)",), "config.metrics names 'wanb'"),
    Case(("--config.method=cpws",), "cpws"),
    Case(("--config.backbone=resnet9",), "backbone 'resnet9' is not known"),
    Case(("--config.dtype=float16",), "config.dtype = 'float16'"),
    Case(("--config.budget=0.001",), "norms and other private parameters alone cost"),
    Case(("--config.budget=2.0",), "config.budget = 2.0"),
    Case(("--config.head=haed",), "haed"),
    Case(("--config.batch_size=4096",), "batch_size = 4096"),
    Case(("--config.image_size=20",), "the digits have 12 pixels per side"),
    Case(("--config.image_bits=99",), "config.image_bits = 99: must be from 8 to 31"),
    Case(("--config.crop_area=(2.0,1.0)",), "config.crop_area"),
    Case(("--config.data=folder",), "config.data = 'folder' is not known; choose one of"),
    Case(("--wokdir=x",), "wokdir"),
    Case(("extra",), "'extra' is not a flag"),
    Case(("--workdir={root}/a_file",), "a_file is not a folder; name another"),
    Case(("--workdir=ftp://mine/run",), "not an address of a bucket; give gs://BUCKET/FOLDER or s3://"),
    Case(("--workdir={root}/a_file/run",), "a_file is not a folder; name another"),
    Case(("--config.weights=/no/such/file",), "config.weights = '/no/such/file': no such file"),
    Case(("--config.weights={root}",), "no such"),
    Case(("--config.weights={root}/w.pth",), "scripts/pth_to_safetensors.py converts"),
    Case(("--config.weights={root}/lfs.safetensors",), "a Git-LFS pointer, not the weights; run `git lfs"),
    Case(("--config.weights={root}/cut.safetensors",), "not a readable safetensors file"),
    Case((W, "--config.backbone=resnet20_cifar"), " more, all of them layer"),
]
ZOO = [
    Case(("--config.data_dir=/nowhere",), "config.data_dir = '/nowhere': no such folder"),
    Case(("--config.data_dir=gs://mine/zoo",), "folders of images are not read from a bucket; copy them"),
    Case(("--config.data_dir=",), "config.data_dir is empty: name the folder"),
    Case(("--config.tasks=('zoos',)",), "has no task 'zoos'; it has zoo"),
    Case((), "no split 'test'; it has train, Test; set config.test_split=Test", renamed),
    Case((), "'emu' of test is not in train", into("test/emu/0.png", noise(99))),
    Case((), "empty class, it has no image", lambda task: (task / "train" / "emu").mkdir()),
    Case((), "new.png: not a readable image", into("train/cat/new.png", noise(0)[:60])),
    Case((), "new.png: not a readable image (the file is empty)", into("train/cat/new.png")),
    Case((), "(a Git-LFS pointer, not the image itself", into("train/cat/new.png", LFS)),
    Case((), "set config.image_bits=12", lambda task: every_image(task, DARK)),
    Case((), "has the value 7 of 0 to 255", lambda task: every_image(task, FLAT)),
    Case((), "split 'val' is empty", lambda task: (task / "val").mkdir()),
    Case((), "a folder in a class folder", into("train/cat/more/0.png", noise(99))),
    Case((), "not a readable zip archive", into("../broken.zip", b"PK")),
    Case((), "out.png: leads out of", linked_out),
    Case((), "there is no file", listed),
    Case((), "validation data is empty", only_one_image),
    Case(("--config.shots=90",), "config.shots = 90"),
]  # fmt: skip


@functools.cache
def weights() -> bytes:
    """A file of weights of a resnet8."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "w.safetensors")
        save_backbone(file, "resnet8", load_backbone("resnet8")[1])
        return file.read_bytes()


def contents(root: pathlib.Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def run_all(folder: pathlib.Path, cases: list[tuple[str, str, Case]]) -> list[tuple[int, str, str, bool]]:
    """Returns status, standard output and error of each (door, config, case), and whether files changed."""
    asked, before = [], []
    for number, (door, config, case) in enumerate(cases):
        root = folder / str(number)
        task = zoo(root)
        (root / "folders.py").write_text(FOLDERS)
        (root / "a_file").write_text("mine")
        (root / "w.pth").write_bytes(b"x")
        (root / "lfs.safetensors").write_bytes(LFS)
        if "weights" in str(case.flags):
            (root / "w.safetensors").write_bytes(weights())
            (root / "cut.safetensors").write_bytes(weights()[:500])
        if case.change:
            case.change(task)
        flags = [config.format(root=root), f"--config.cache_dir={root}-cache", "--config.compilation_cache="]
        if config != "configs/digits.py":
            flags.append(f"--config.data_dir={root}/data")
        flags += [f"--workdir={root}/run", *(flag.format(root=root) for flag in case.flags)]
        asked.append({"door": door, "flags": flags, "log": str(folder / f"log{number}")})
        before.append(contents(root))
    environment = compiling.environment()
    done = subprocess.run(
        [sys.executable, "-c", FORKED],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    found = []
    for number, status in enumerate(map(int, done.stdout.split())):
        out, err = ((folder / f"log{number}.{name}").read_text() for name in ("out", "err"))
        found.append((status, out, err, contents(folder / str(number)) != before[number]))
    return found


@pytest.fixture(scope="module")
def refused(tmp_path_factory) -> list[tuple[int, str, str, bool]]:
    cases = [("main", "configs/digits.py", case) for case in DIGITS]
    cases += [("main", "{root}/folders.py", case) for case in ZOO]
    return run_all(tmp_path_factory.mktemp("bad"), cases)


@pytest.mark.parametrize("number", range(len(DIGITS) + len(ZOO)))
def test_each_is_one_line_and_nothing_changes(refused, number):
    status, out, err, changed = refused[number]
    assert status == 2, out + err
    assert err.startswith("cwps: ") and err.count("\n") == 1 and len(err) < 1500, err
    assert [*DIGITS, *ZOO][number].line in err
    assert not changed


def test_the_check_finds_the_same_as_a_problem(tmp_path):
    cases = [case for case in ZOO if not case.flags]
    for (status, out, err, changed), case in zip(
        run_all(tmp_path, [("check", "{root}/folders.py", case) for case in cases]), cases, strict=True
    ):
        assert (status, err, changed) == (1, "", False), (case, out, err)
        assert "problem: zoo: " in out, case


def test_without_a_device_the_variable_is_named(tmp_path):
    command = [sys.executable, "-m", "cwps_jax.main", "configs/digits.py", f"--workdir={tmp_path / 'w'}"]
    environment = {**os.environ, "JAX_PLATFORMS": "nonsense"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 2 and done.stderr.startswith("cwps: JAX has no device to run on: ")
    assert done.stderr.count("\n") == 1 and "set JAX_PLATFORMS=cpu" in done.stderr
    assert not (tmp_path / "w").exists()


def test_caches_that_cannot_be_written_to_are_none_and_this_is_said(tmp_path, caplog):
    """A file in the folder's place: who runs as root may write to any folder."""
    (tmp_path / "a_file").write_text("mine")
    assert open_cache("disk", tmp_path / "a_file" / "images", 10**9) is None
    source = ArraySource(np.zeros((2, 4, 4, 3), np.uint8), np.arange(2), ("cat", "dog"))
    source.fingerprint = "one"
    assert scan(source, cache_dir=str(tmp_path / "a_file")).labels.tolist() == [0, 1]
    start_jax(SimpleNamespace(compilation_cache=str(tmp_path / "a_file" / "cache")))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 3 and not any("\n" in line for line in told)
    assert "continuing without a cache" in told[0] and "name another config.cache_dir" in told[1]
    assert "config.compilation_cache = " in told[2] and "continuing without it" in told[2]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "run/pool/x"),
            "run/pool/x: No space left on device; make room in --workdir and config.cache_dir, or name",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; make room in"),
        (PermissionError(errno.EACCES, "Permission denied", "run"), "run: Permission denied; name another"),
        (OSError(errno.EROFS, "Read-only file system", "run"), "run: Read-only file system; name another"),
    ],
)
def test_an_error_of_the_disk_is_one_line(monkeypatch, capsys, error, line):
    def fail(*given: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(command_line.app, "run", fail)
    with pytest.raises(SystemExit) as end:
        command_line.run(lambda config: 0)
    told = capsys.readouterr().err
    assert end.value.code == 2 and told.startswith(f"cwps: {line}") and told.count("\n") == 1


@pytest.mark.parametrize("error", [OSError("a fault"), RuntimeError("a fault"), KeyError("a fault")])
def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch, error):
    def fail(*given: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(command_line.app, "run", fail)
    with pytest.raises(type(error), match="a fault"):
        command_line.run(lambda config: 0)
