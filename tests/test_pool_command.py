"""The pool's command line: what each verb prints, as tables and as JSON; one line for whatever is wrong."""

import csv
import io
import json
import pathlib
import re
import shutil
import subprocess
import sys

import compiling
import pytest
import served
from PIL import Image

import cwps_jax as cwps
from cwps_jax.pool import __main__ as command

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(own_served_pool):
    return own_served_pool.folder.parent


@pytest.fixture
def told(folder, monkeypatch, capsys):
    """Returns what a verb prints on the pool, run in this process from the folder of the data."""
    monkeypatch.chdir(folder)

    def tell(verb: str, *arguments: str) -> str:
        command.main([verb, "pool", *arguments])
        return capsys.readouterr().out

    return tell


def width_of(file: pathlib.Path) -> int:
    with Image.open(file) as picture:
        return picture.size[0]


def read_json(text: str):
    return json.loads(text)


def test_list_has_a_row_for_each_task(told, folder):
    pool = cwps.Pool.open(folder / "pool")
    rows = read_json(told("list", "--json"))
    assert [row["task"] for row in rows] == ["digits", "negative", "earlier"]
    for row in rows:
        version = pool.version(row["task"])
        assert row["accuracy"] == version.record["accuracy_when_learned"]
        assert (row["bytes"], row["kept"]) == (version.bytes, pool.count(row["task"]).ratio)
        assert row["from"] == pool.relation(row["task"])
    table = told("list")
    for text in (
        "3 tasks on resnet8",
        f"{rows[1]['bytes']:,}",
        f"{rows[1]['kept']:.3f}x",
        rows[1]["stored"][:10],
    ):
        assert text in table


def test_show_says_settings_classes_and_layers(told, folder):
    found = read_json(told("show", "negative", "--json"))
    assert found["classes"] == list(served.CLASSES)
    assert found["settings"]["epochs"] == 4 and found["settings"]["method.name"] == "cwps"
    layers = {one["layer"]: one for one in found["layers"]}
    assert set(layers) == {layer.path for layer in cwps.Pool.open(folder / "pool").layout.layers}
    for one in layers.values():
        assert one["own"] + sum(one["borrowed"].values()) == one["channels"]
    shown = told("show", "negative@1")
    for text in ("negative@1", "one [b], two, zéro", "batch_size", *layers):
        assert text in shown
    assert "names were not recorded" in told("show", "earlier")


def test_diff_says_settings_and_equal_channels(told):
    same = read_json(told("diff", "negative", "negative@1", "--json"))
    assert same["settings"] == {} and set(same["equal_channels"].values()) == {1.0}
    other = read_json(told("diff", "digits", "earlier", "--json"))
    assert other["settings"]["epochs"] == [4, None]
    pretrained = read_json(told("diff", "digits", "pretrained", "--json"))["equal_channels"]
    shown = read_json(told("show", "digits", "--json"))["layers"]
    for one in shown:
        assert pretrained[one["layer"]] >= one["borrowed"].get("pretrained", 0) / one["channels"]
    assert "epochs" in told("diff", "digits", "earlier")


def test_predict_prints_csv_or_json_lines_with_class_names(told, folder):
    files = sorted(map(str, pathlib.Path("DATA/negative/test/zéro").glob("*")))
    rows = list(
        csv.DictReader(io.StringIO(told("predict", "negative", "DATA/negative/test/zéro", "--top", "2")))
    )
    lines = [json.loads(line) for line in told("predict", "negative", *files, "--json").splitlines()]
    wanted = cwps.predict(cwps.Pool.open("pool"), "negative", files)
    assert [row["class"] for row in rows if row["rank"] == "1"] == wanted.classes
    assert [row["image"] for row in rows[::2]] == [line["image"] for line in lines] == files
    assert [line["top"][0]["class"] for line in lines] == wanted.classes
    assert [line["top"][0]["probability"] for line in lines] == wanted.probabilities.max(axis=1).tolist()
    assert {row["class"] for row in rows} <= set(served.CLASSES)


def test_predict_reads_paths_from_standard_input_and_draws_a_sheet(told, tmp_path, monkeypatch):
    files = sorted(map(str, pathlib.Path("DATA/digits/test/two").glob("*.jpg")))
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(files) + "\n"))
    sheet = tmp_path / "sheet.png"
    printed = told("predict", "digits", "-", "--batch", "8", "--contact-sheet", str(sheet))
    assert [row["image"] for row in csv.DictReader(io.StringIO(printed))] == files
    assert width_of(sheet) > 300


def test_evaluate_prints_accuracy_per_class_and_draws_confusions(told, tmp_path):
    found = read_json(told("evaluate", "negative", "--json"))
    wanted = cwps.evaluate(cwps.Pool.open("pool"), "negative")
    assert found["accuracy"] == wanted.metric and found["confusion"] == wanted.confusion.tolist()
    assert found["images"] == 45 and found["per_class"] == wanted.per_class
    table = told("evaluate", "negative", "DATA/negative/test", "--confusion", str(tmp_path / "c.png"))
    assert f"{wanted.metric:.2%} of 45" in table and "one [b]" in table
    assert width_of(tmp_path / "c.png") > 300


def test_export_writes_a_file(told, tmp_path):
    file = tmp_path / "out.safetensors"
    assert "negative@1" in told("export", "negative", str(file))
    assert cwps.load_backbone("resnet8", file, image_size=12)[0].num_classes == 3


def test_the_shell_gives_what_python_gives(folder):
    environment = compiling.environment(PYTHONPATH=str(ROOT))
    program = [sys.executable, "-m", "cwps_jax.pool", "predict", "pool", "negative"]
    program.append("DATA/negative/test/two/turned.jpg")
    done = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    (row,) = csv.DictReader(io.StringIO(done.stdout))
    wanted = cwps.predict(
        cwps.Pool.open(folder / "pool"), "negative", folder / "DATA/negative/test/two/turned.jpg"
    )
    assert row["class"] == wanted.classes[0]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("", "no verb: give one of list"),
        ("lst pool", "no verb 'lst'; did you mean list?"),
        ("list", "the following arguments are required: POOL"),
        ("list nowhere", "nowhere: no pool here"),
        ("list pool --jsn", "unrecognized arguments: --jsn"),
        ("show pool negativ", "did you mean 'negative'?"),
        ("show pool pretrained", "'pretrained' is not a task"),
        ("diff pool digits two", "no task 'two'"),
        ("predict pool negative", "the following arguments are required: IMAGES"),
        (
            "predict pool negativ {image}",
            "pool: no task 'negativ' in this pool; did you mean 'negative'? it has pretrained, digits, ",
        ),
        ("predict pool pretrained {image}", "the model that tasks start from"),
        ("predict pool earlier {image}", "stored without what it was learned with"),
        ("predict pool negative away.png", "away.png: no such image"),
        ("predict pool negative no_image.png", "no_image.png: not a readable image"),
        ("predict pool negative {image} --top 0", "'0' must be a whole number"),
        ("predict pool negative {image} --contact-sheet a.jpg", "pictures are PNG files"),
        ("predict pool negative {image} --contact-sheet none/a.png", "no such folder"),
        ("predict damaged negative {image}", "damaged, its files are not those that were saved"),
        ("evaluate pool negative none", "none: no such folder"),
        ("evaluate pool negative DATA", "no class of this name"),
        ("export pool negative out.pth", "an export is a safetensors file or a program"),
        ("export pool negative out.safetensors --keys keras", "no key names 'keras'"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_2(folder, arguments, told, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    if not pathlib.Path("damaged").exists():
        shutil.copytree("pool", "damaged")
        version = cwps.Pool.open("damaged").version("negative")
        stored = pathlib.Path("damaged/tasks", version.folder, "own/arrays/float32/0")
        content = bytearray(stored.read_bytes())
        content[len(content) // 2] ^= 1
        stored.write_bytes(content)
    pathlib.Path("no_image.png").write_bytes(b"no image")
    before = {path: path.stat().st_mtime_ns for path in pathlib.Path(".").rglob("*")}
    image = "DATA/negative/test/two/turned.jpg"
    monkeypatch.setattr(sys, "argv", ["cwps-pool", *arguments.format(image=image).split()])
    with pytest.raises(SystemExit) as ended:
        command.run()
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out) == (2, "")
    assert printed.err.startswith("cwps-pool: ") and printed.err.count("\n") == 1
    assert told in printed.err
    assert {path: path.stat().st_mtime_ns for path in pathlib.Path(".").rglob("*")} == before


def test_a_tasks_life_from_the_shell(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    shutil.copytree("pool", "living")
    shutil.copytree("pool", "other")

    def tell(*arguments: str) -> str:
        command.main(arguments)
        return capsys.readouterr().out

    wanted = cwps.predict(cwps.Pool.open("pool"), "negative", "DATA/negative/test").logits
    assert "3 tasks are as they were stored" in tell("verify", "living")
    assert json.loads(tell("verify", "living", "--json")) == []
    assert tell("rename", "living", "negative", "dark") == "negative: now dark\n"
    assert json.loads(tell("copy", "living", "dark", "other", "copied", "--json"))["copied"] == "copied@1"
    with pytest.raises(cwps.CwpsError, match="cannot be removed"):
        tell("remove", "living", "digits")
    assert json.loads(tell("merge", "living", "other", "--json"))["merged"] == ["negative@1", "copied@1"]
    assert tell("merge", "living", "other") == "merged: nothing, all is here\n"
    for one in ("copied", "negative"):
        assert tell("remove", "living", one) == f"{one}@1: removed\n"
    assert tell("remove", "living", "digits", "--rehome") == "digits@1: removed\n"
    assert set(json.loads(tell("compact", "living", "--json"))) == {"removed"}
    assert cwps.Pool.open("living").tasks == ("dark", "earlier")
    for pool, task in (("living", "dark"), ("other", "copied")):
        again = cwps.predict(cwps.Pool.open(pool), task, "DATA/negative/test").logits
        assert (again == wanted).all()
    version = cwps.Pool.open("other").version("copied")
    stored = pathlib.Path("other/tasks", version.folder, "own/arrays/float32/0")
    content = stored.read_bytes()
    stored.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(cwps.CwpsError, match="1 damaged"):
        command.main(["verify", "other"])
    assert "needed by copied@1" in capsys.readouterr().out


def test_the_page_names_every_verb_and_option():
    page = (ROOT / "docs" / "pool.md").read_text()
    (verbs,) = (action for action in command.parser()._actions if action.choices)
    assert set(verbs.choices) == {*command.stored.VERBS, *command.answers.VERBS, *command.changes.VERBS}
    for verb, one in verbs.choices.items():
        options = [name for action in one._actions for name in action.option_strings]
        assert re.search(rf"[`-]?{verb}\b", page)
        assert [name for name in options if name not in ("-h", "--help") and name not in page] == []
