"""The pages of docs/ and their like: every link leads somewhere, and the code of the short guides runs."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import chex
import compiling
import jax
import pytest
from conftest import random_split
from test_check import png
from test_configs import write_weights

import cwps_jax as cwps

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "launch/README.md")),
    *sorted(DOCS.glob("**/*.md")),
]


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: pathlib.Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub and Python-Markdown both make them."""
    headings = re.findall(r"^#+ (.*)$", without_code(page.read_text()), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading.replace("`", "").lower()).strip() for heading in headings)
    return {re.sub(r"\s", "-", heading) for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_its_links_lead_somewhere(page):
    wrong = []
    for target in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", without_code(page.read_text())):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or not file.is_relative_to(ROOT) or (anchor and anchor not in anchors(file)):
            wrong.append(target)
    assert wrong == []


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), re.DOTALL)


@pytest.mark.parametrize("name", ["budgets.md", "few_images.md"])
def test_its_settings_are_settings(name):
    names: dict = {}
    for block in blocks(name):
        exec(compile(block, name, "exec"), names)
    assert any(isinstance(value, cwps.TrainConfig) for value in names.values())


def test_the_ten_lines_run(tmp_path, tiny_model, tiny_variables, tiny_layout, monkeypatch):
    split = random_split(64)
    given = {
        "model": tiny_model,
        "key": jax.random.key(0),
        "images": split["image"][:2],
        "folder": tmp_path / "pool",
        "pretrained": tiny_variables,
        "data": cwps.TaskData(split, split, split, classes=3),
        "child": tiny_variables["params"],
        "masks": cwps.init_scores(tiny_layout),
    }
    # The example takes the defaults; thirty epochs are more than a test needs.
    monkeypatch.setitem(cwps.learn_task.__kwdefaults__, "config", cwps.TrainConfig(epochs=3, batch_size=16))
    (example,) = blocks("python.md")
    exec(compile(example, "python.md", "exec"), given)
    chex.assert_trees_all_equal(given["same"], given["task"].variables)
    assert given["logits"].shape == (2, 3)
    assert set(given["params"]) == {"conv1", "conv2", "norm", "head"}


# What makes the commands of docs/get_started.md quick; the rest of them is as a reader types it.
QUICK = "backbone=resnet8 image_size=16 epochs=3 least_steps=1 batch_size=8 cache_dir="


def test_three_commands_lead_from_photos_to_a_prediction(tmp_path):
    text = (DOCS / "get_started.md").read_text()
    check, learn, predict = re.findall(r"^python -m (?:cwps_jax\.\w+ .*(?:photo).*)$", text, re.MULTILINE)
    for number, (split, count) in enumerate((("train", 6), ("test", 2))):
        for index in range(2 * count):
            file = tmp_path / "DATA/birds" / split / ("robin", "wren")[index % 2] / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(100 * number + index))
    (tmp_path / "new_photo.jpg").write_bytes(png(1000))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    weights = tmp_path / "DATA/weights/resnet18.safetensors"
    weights.parent.mkdir()
    write_weights(weights, "resnet8")
    quick = [*QUICK.split(), f"compilation_cache={os.environ['CWPS_TEST_CACHE']}"]
    flags = [f"--config.{part}" for part in quick]
    # One device, as a reader has it.
    environment = compiling.environment(PYTHONPATH=str(ROOT))
    for command, more in ((check, flags), (learn, flags), (predict, [])):
        _, *words = shlex.split(command)
        done = subprocess.run(
            [sys.executable, *words, *more], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "image,rank,class,probability" and len(lines) == 3
    assert {line.split(",")[2] for line in lines[1:]} == {"robin", "wren"}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> pathlib.Path:
    """The site, built where MkDocs is installed; a warning is an error."""
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_asks_for_nothing_from_a_network(site):
    wanted = r"<(?:script|img|iframe)[^>]*src=[\"']?(?:https?:)?//|<link[^>]*href=[\"']?(?:https?:)?//"
    loading = [page.name for page in site.glob("**/*.html") if re.search(wanted, page.read_text())]
    assert loading == []
    assert "composite parent" in (site / "search" / "search_index.json").read_text()


def test_the_links_of_the_site_lead_somewhere(site):
    wrong = []
    for page in site.glob("**/*.html"):
        for target in re.findall(r'<(?:a|img)[^>]*(?:href|src)="(?!\w+:)([^"#?]+)', page.read_text()):
            file = page.parent / target
            if not target.startswith("/") and not (file.is_file() or (file / "index.html").is_file()):
                wrong.append(f"{page.relative_to(site)}: {target}")
    assert wrong == []


def test_every_public_name_is_on_a_page_of_the_api():
    pages = "\n".join(page.read_text() for page in DOCS.glob("api/*.md"))
    described = {name.split(".")[-1] for name in re.findall(r"^::: (cwps_jax\.\S+)$", pages, re.MULTILINE)}
    constants = {"BACKBONES", "PRIVATE", "__version__", "methods"}
    assert set(cwps.__all__) - constants <= described
    assert {type(method()).__name__ for method in cwps.methods.METHODS.values()} <= described


def test_every_method_has_a_section_with_its_equation():
    sections = dict(re.findall(r"^### (\w+)\n\n(.*?)(?=^##)", (DOCS / "methods.md").read_text(), re.M | re.S))
    ours = [
        name for name, method in cwps.methods.METHODS.items() if method.__module__.startswith("cwps_jax.")
    ]
    assert list(sections) == ours
    assert [name for name, text in sections.items() if "```text\n" not in text] == []
