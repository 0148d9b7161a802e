"""What a study says: means and paired differences, fronts, transfer, and the page in a real browser."""

import html
import json
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest
from studies import small_study

from cwps_jax.report.rows import make_row
from cwps_jax.study.page import page
from cwps_jax.study.pictures import draw_cost, draw_study
from cwps_jax.study.summary import front, paired_difference, summarise
from cwps_jax.study.tables import continual_table, groups_table, markdown, tasks_table

PARAMETERS = 1000
TASKS = ("negative", "loops")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def result(cell, accuracy, validation=0.5, size=100, **known):
    """Returns a cell's file in which every task reached the same."""
    rows, forgetting = [], []
    for task in cell.config.tasks:
        own = {"task": task, "method": cell.config.method, "draw": 0, "accuracy": accuracy}
        costs = {"bytes": size, "parameters": size // 4, "params_ratio": size / 4000, "trained": 7}
        rows.append(
            make_row({**own, **costs, "validation_accuracy": validation, "peak_memory_bytes": 5, **known})
        )
        hashes = {"logits_sha256_when_learned": "a", "logits_sha256_at_end": "a"}
        forgetting.append({"accuracy_when_learned": accuracy, "accuracy_at_end": accuracy, **hashes})
    results = {
        "backbone": cell.config.backbone,
        "backbone_parameters": PARAMETERS,
        "versions": {"jax": "0", "device": "1 x <none>"},
        "rows": rows,
        "forgetting": forgetting,
    }
    return {"seconds": 60.0, "epochs_seconds": dict.fromkeys(cell.config.tasks, 2.0), "results": results}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    grids = (
        {"method": ("cwps",), "budget": (0.1, 0.4), "seed": (0, 1, 2)},
        {"method": ("finetune",), "seed": (0, 1, 2)},
        {"method": ("cwps",), "tasks": (("loops",),), "seed": (0, 1, 2)},
    )
    title = "Is <cwps> any good?"
    return small_study(tmp_path_factory.mktemp("cache"), grids=grids, title=title)


@pytest.fixture(scope="module")
def finished(study):
    """By hand: small budget 0.6, large 0.8, fine-tuning 0.85, each a hundredth better a seed; alone 0.75."""
    worth = {("cwps", 0.1): (0.6, 100), ("cwps", 0.4): (0.8, 400), ("finetune", 0.4): (0.85, 900)}
    found = []
    for cell in study.cells:
        accuracy, size = worth[cell.config.method, cell.config.budget]
        if len(cell.config.tasks) == 1:
            accuracy = 0.75
        accuracy += 0.01 * cell.config.seed
        found.append((cell, result(cell, accuracy, accuracy - 0.1, size)))
    return found


@pytest.fixture(scope="module")
def report(study, finished):
    return summarise(study, finished)


def test_an_interval_is_that_of_student():
    # R: t.test(c(1, 2, 4)): 2.333, from -1.461 to 6.128.
    found = paired_difference([(1, 0), (3, 1), (5, 1)])
    assert found == {
        "mean": pytest.approx(7 / 3),
        "low": pytest.approx(-1.461250, abs=1e-5),
        "high": pytest.approx(6.127916, abs=1e-5),
        "pairs": 3,
    }
    assert paired_difference([(2, 1)]) == {"mean": 1, "low": None, "high": None, "pairs": 1}
    assert paired_difference([])["mean"] is None


def test_an_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    drawn = (paired_difference([(one, 0.0) for one in rng.normal(0.3, 1, 4)]) for _ in range(2000))
    share = np.mean([one["low"] <= 0.3 <= one["high"] for one in drawn])
    assert 0.935 < share < 0.965


@pytest.mark.parametrize("seed", range(5))
def test_a_front_is_what_no_point_beats(seed):
    points = [tuple(one) for one in np.random.default_rng(seed).integers(0, 8, (20, 2)).tolist()]
    kept = front(points)
    for (cost, worth), on_front in zip(points, kept, strict=True):
        better = [p for p in points if p[0] <= cost and p[1] >= worth and p != (cost, worth)]
        assert on_front == (not better)
    assert any(kept)


def test_groups_are_means_over_seeds(report):
    together, alone = report["sections"]
    assert (together["tasks"], alone["tasks"]) == (sorted(TASKS), ["loops"])
    labels = [group["label"] for group in together["groups"]]
    assert labels == ["cwps, budget 0.1", "cwps, budget 0.4", "finetune"]
    small, large, finetune = together["groups"]
    assert small["accuracy"] == {"mean": pytest.approx(0.61), "deviation": pytest.approx(0.01)}
    assert large["tasks"]["loops"]["mean"] == pytest.approx(0.81) and large["seeds"] == [0, 1, 2]
    assert large["bytes_ratio"] == pytest.approx(400 / (4 * PARAMETERS))
    assert finetune["is_baseline"] and finetune["difference"] is None
    assert large["difference"]["mean"] == pytest.approx(-0.05) and large["difference"]["pairs"] == 3
    assert small["seconds"]["mean"] == 2.0 and report["seconds"] == 60.0 * 12


def test_tasks_are_compared_with_the_same_learned_alone(report):
    small, large, finetune = (group["continual"] for group in report["sections"][0]["groups"])
    assert large["forward_transfer"] == pytest.approx(0.05) and large["forward_pairs"] == 3
    assert small["forward_transfer"] is None and finetune["forward_transfer"] is None
    assert large["backward_transfer"] == large["forgetting"] == large["changed_tasks"] == 0


def test_what_is_lost_is_counted(study, finished):
    cell, values = finished[0]
    lost = json.loads(json.dumps(values))
    one = lost["results"]["forgetting"][0]
    one.update(accuracy_at_end=one["accuracy_when_learned"] - 0.2, logits_sha256_at_end="b")
    known = summarise(study, [(cell, lost)])["sections"][0]["groups"][0]["continual"]
    assert known["backward_transfer"] == pytest.approx(-0.1) and known["forgetting"] == pytest.approx(0.1)
    assert known["changed_tasks"] == 1


def test_bytes_add_up_from_the_pre_trained_model_on(report):
    small = report["sections"][0]["groups"][0]
    assert small["total_bytes"] == [4 * PARAMETERS, 4 * PARAMETERS + 100, 4 * PARAMETERS + 200]


def test_validation_alone_chooses(study, finished):
    turned = []
    for cell, values in finished:  # the best on validation is now the worst on the test set
        accuracy = values["results"]["rows"][0]["accuracy"]
        size = values["results"]["rows"][0]["bytes"]
        turned.append((cell, result(cell, accuracy, 1 - accuracy, size)))
    groups = summarise(study, turned)["sections"][0]["groups"]
    assert [group["best"] for group in groups] == [True, False, False]
    assert [group["front"]["bytes"] for group in groups] == [True, False, False]
    groups = summarise(study, finished)["sections"][0]["groups"]
    assert [group["best"] for group in groups] == [False, False, True]
    assert [group["front"]["bytes"] for group in groups] == [True, True, True]


def test_a_group_that_lacks_seeds_or_has_no_partner_says_so(study, finished):
    partly = [one for one in finished if one[0].config.method != "finetune" and one[0].config.seed < 1]
    report = summarise(study, partly)
    group = report["sections"][0]["groups"][0]
    assert group["seeds"] == [0] and group["accuracy"]["deviation"] is None and group["difference"] is None
    assert report["cells"] == {"finished": 3, "asked": 12} and "3 of 12 cells" in markdown(report)


def test_tables_have_a_cell_for_each_column(report):
    for section in report["sections"]:
        for table in (groups_table, tasks_table, continual_table):
            header, rows = table(section)
            assert len(rows) == len(section["groups"]) and {len(row) for row in rows} == {len(header)}
    lines = markdown(report).splitlines()
    (line,) = [line for line in lines if line.startswith("| cwps, budget 0.4 |")]
    assert "| 81.0 (1.0) | 71.0 (1.0) | -5.0 [-5.0, -5.0] | 0.100x | 400 | 0.1000x |" in line


@pytest.fixture(scope="module")
def written(report, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    path = folder / "report.html"
    path.write_text(page(report, draw_study(report, folder / "report")))
    return path


def test_the_page_is_one_file_that_asks_for_nothing(written, report):
    text = written.read_text()
    assert "<title>Is &lt;cwps&gt; any good?</title>" in text and "1 x &lt;none&gt;" in text
    links = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert all(link.startswith(("#section", "data:image/png;base64,")) for link in links)
    assert len(re.findall('<img alt="[^"]{30,}"', text)) == 5
    assert "default-src 'none'" in text and "url(" not in text and "<script" not in text
    assert text.count("<img") == len(list(written.parent.glob("report/*.png"))) == 5
    for section in report["sections"]:
        assert html.escape(section["title"]) in text


def test_the_pictures_depend_on_the_report_alone(report, tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    (first, *_), (second, *_) = (draw_study(report, folder)[0] for folder in folders)
    assert first[0].read_bytes() == second[0].read_bytes()


def test_points_of_different_groups_are_not_joined(report):
    section = report["sections"][0]
    page = draw_cost(section, section["groups"], "bytes")
    axes = page.axes.figure.axes[1]
    assert len(axes.containers) == len(section["groups"]) and axes.get_xscale() == "log"
    assert all(len(line.get_xdata()) == 1 for line in axes.lines)


def browse(*flags: str) -> str:
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


PROBE = """<script>addEventListener("load", () => {
  const cut = [...document.querySelectorAll("body *")].filter(one => !one.closest(".scroll")
    && one.getBoundingClientRect().right > innerWidth + 1).length;
  const place = document.querySelector(".scroll");
  place.focus();
  parent.postMessage(JSON.stringify({
    width: innerWidth, wide: document.documentElement.scrollWidth, cut: cut,
    images: [...document.images].every(one => one.complete && one.naturalWidth > 0),
    outline: getComputedStyle(place).outlineStyle,
    pictures: getComputedStyle(document.images[0]).filter,
    paper: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
  }), "*");
});</script>"""
# A window of Chromium's is at least 500 pixels wide; a frame is as narrow as a phone.
FRAME = """<!doctype html><script>addEventListener("message", told => document.title = told.data)</script>
<iframe src="probed.html" style="border: 0; width: {}px; height: 900px"></iframe>"""


def probed(written: pathlib.Path, width: int, *flags: str) -> dict:
    """Returns what a browser measured on the page, which forbids scripts and so is copied with one."""
    free = re.sub(r"<meta http-equiv[^>]*>", "", written.read_text())
    written.with_name("probed.html").write_text(free.replace("</body>", PROBE + "</body>"))
    frame = written.with_name("frame.html")
    frame.write_text(FRAME.format(width))
    dumped = browse("--dump-dom", "--virtual-time-budget=5000", *flags, frame.as_uri())
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", dumped)[1]))


@pytest.mark.skipif(not BROWSER, reason="needs Chromium on the PATH")
@pytest.mark.parametrize("width", [360, 1280])
def test_a_real_browser_shows_the_whole_page(written, width):
    found = probed(written, width, "--window-size=1400,1000")
    assert found["images"] and found["outline"] == "solid"
    assert found["wide"] <= found["width"] == width and found["cut"] == 0


@pytest.mark.skipif(not BROWSER, reason="needs Chromium on the PATH")
def test_the_page_is_light_or_dark_as_its_reader_is(written):
    light, dark = (probed(written, 800, f"--blink-settings=preferredColorScheme={one}") for one in (1, 0))
    assert (light["paper"], dark["paper"]) == ("rgb(255, 255, 255)", "rgb(22, 22, 22)")
    assert light["ink"] != dark["ink"]
    assert light["pictures"] == "none" and dark["pictures"].startswith("invert(")


@pytest.mark.skipif(not BROWSER, reason="needs Chromium on the PATH")
def test_the_page_prints(written):
    printed = written.with_name("printed.pdf")
    browse(f"--print-to-pdf={printed}", "--no-pdf-header-footer", written.as_uri())
    content = printed.read_bytes()
    assert content.startswith(b"%PDF") and 2 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 6
    assert len(re.findall(rb"/Subtype\s*/Image", content)) >= 5


def test_orders_and_depths_are_groups_of_one_problem(tmp_path):
    grids = (
        {"tasks": (TASKS, TASKS[::-1])},
        {"backbone": ("resnet20_cifar",)},
        {"method": ("cwps",), "cwps.granularity": ("layer",)},
        {"shots": (8,), "method": ("finetune",)},
    )
    study = small_study(
        tmp_path, grids=grids, baseline={"method": "cwps", "cwps": {"granularity": "channel"}}
    )
    report = summarise(study, [(cell, result(cell, 0.5)) for cell in study.cells])
    together, fewer = report["sections"]
    assert together["title"] == "loops, negative; cwps; shots 16"
    assert fewer["title"] == "loops, negative; backbone resnet8; finetune; shots 8"
    assert together["backbone"] == "resnet8, resnet20_cifar" and [
        group["label"] for group in together["groups"]
    ] == [
        "negative > loops, backbone resnet8, cwps.granularity channel",
        "loops > negative, backbone resnet8, cwps.granularity channel",
        "negative > loops, backbone resnet20_cifar, cwps.granularity channel",
        "negative > loops, backbone resnet8, cwps.granularity layer",
    ]
    # Each is compared with its own order and depth, in channels.
    assert [group["is_baseline"] for group in together["groups"]] == [True, True, True, False]
    assert together["groups"][3]["difference"]["mean"] == 0 and fewer["groups"][0]["difference"] is None
    assert summarise(study, [])["sections"] == []
