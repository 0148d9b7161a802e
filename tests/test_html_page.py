"""The page of a run and of a study: one file, with all that was measured, in a real browser."""

import html
import re

import pytest
from browsing import BROWSER, browser
from invented import invented
from studies import invented_cells

from cwps_jax.config import run_config
from cwps_jax.report.pictures import draw_comparison
from cwps_jax.report.run_page import run_page
from cwps_jax.study.page import page as study_page
from cwps_jax.study.pictures import draw_study
from cwps_jax.study.summary import summarise

PICTURES = {"run": 3, "study": 5}
CONFIG = {"tasks": ("birds", "<cars>"), "source": "digits", "budget": 0.25, "cwps": {"lambda_": 0.3}}
FACTS = """(() => { const place = document.querySelector('.scroll'); place.focus(); return {
  wide: document.documentElement.scrollWidth,
  cut: [...document.querySelectorAll('body *')].filter(one => !one.closest('.scroll')
    && one.getBoundingClientRect().right > innerWidth + 1).length,
  pictures: [...document.images].filter(one => one.complete && one.naturalWidth > 0 && one.alt).length,
  outline: getComputedStyle(place).outlineStyle,
  filter: getComputedStyle(document.images[0]).filter,
  paper: getComputedStyle(document.body).backgroundColor,
  ink: getComputedStyle(document.body).color,
}; })()"""


def page_of(results, folder, **changes) -> str:
    return run_page(results, run_config({**CONFIG, **changes}), draw_comparison(results, folder))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Returns {what it is of: the file}."""
    folder = tmp_path_factory.mktemp("pages")
    report = summarise(*invented_cells(folder))
    texts = {
        "run": page_of(invented(3, tasks=CONFIG["tasks"]), folder / "report"),
        "study": study_page(report, draw_study(report, folder / "study")),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text)
    return {name: folder / f"{name}.html" for name in texts}


def rows_of(text: str, first: str) -> list[list[str]]:
    """Returns the texts of all rows of tables that begin so."""
    found = re.findall(f'<tr><th scope="row">{re.escape(html.escape(first))}</th>(.*?)</tr>', text)
    return [re.findall("<td[^>]*>(.*?)</td>", row) for row in found]


@pytest.mark.parametrize("kind", PICTURES)
def test_a_page_is_one_file_that_asks_for_nothing(pages, kind):
    text = pages[kind].read_text()
    links = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert all(link.startswith(("#section", "data:image/png;base64,")) for link in links)
    assert len(re.findall('<img alt="[^"]{30,}"', text)) == text.count("<img") == PICTURES[kind]
    assert "default-src 'none'" in text and "url(" not in text and "<script" not in text
    assert "<cars>" not in text and "<cwps>" not in text and "<none>" not in text
    targets = re.findall('href="#(section[0-9]+)"', text)
    assert targets == re.findall('<section id="(section[0-9]+)"', text)


def test_the_page_of_a_study_names_its_sections(pages):
    text = pages["study"].read_text()
    assert "<title>Is &lt;cwps&gt; any good?</title>" in text and "1 x &lt;none&gt;" in text
    assert "<h2>loops, negative <small>(resnet8)</small></h2>" in text


def test_the_page_of_a_run_has_what_was_measured(pages):
    text = pages["run"].read_text()
    reached, stored, at_end = rows_of(text, "<cars>")
    assert reached == ["89.5%", "86.5%", "83.5%", "0.250x", "1,000", "0.125x", "pretrained 75%"]
    assert stored == ["25.0%", "32", "250", "30", "8", "1 k", "2 M", "2.5", "50.0%"]
    assert at_end == ["method0", "89.5%", "89.5%", "+0.0", "yes"]
    assert rows_of(text, "method1") == [
        ["86.8%", "0.500x", "0.250x", "2.00x", "1 k", "2 M", "3 G", "2.5"],
        ["4,000", "6,000", "8,000"],
    ]
    settings = {key: value for key, value in re.findall('row">(config[^<]*)</th><td[^>]*>(.*?)</td>', text)}
    assert settings.keys() == {"config.tasks", "config.source", "config.budget", "config.cwps.lambda_"}
    assert settings["config.cwps.lambda_"] == "0.3" and rows_of(text, "device") == [["1 x cpu"]]


def test_what_was_lost_is_told_in_points(tmp_path):
    results = invented(1)
    results["forgetting"][0].update(accuracy_at_end=0.8, logits_sha256_at_end="b")
    results["forgetting"][1].update(same_program=False)
    text = page_of(results, tmp_path)
    assert rows_of(text, "birds")[-1] == ["method0", "90.0%", "80.0%", "-10.0", "no"]
    assert rows_of(text, "cars")[-1][-1] == "cannot be compared"
    assert "backward transfer -5.0, forgetting 5.0" in text


def test_many_methods_draws_budgets_and_rounds_have_their_tables(tmp_path):
    results = invented(5, draws=2)
    curve = {"byte_budget": 0.1, "byte_ratio": 0.05, "bytes": 77, "validation_accuracy": 0.5, "kept": True}
    results["curves"] = [{"task": "birds", "draw": 1, **curve}]
    one = {"round": 1, "task": "birds", "draw": 0, "version": 1, "accuracy_when_learned": 0.5}
    one |= {"validation_accuracy": 0.5, "params_ratio": 0.5, "bytes": 1, "older_bytes": 0, "relation": None}
    results["rounds"] = [one]
    text = page_of(results, tmp_path)
    assert "2 draws: mean (deviation)" in text
    assert rows_of(text, "method4")[0] == ["78.0% (0.1)", "77.5% (0.1)"]
    assert rows_of(text, "birds, draw 1")[0] == ["0.1x", "0.0500x", "77", "50.0%", "yes"]
    assert rows_of(text, "1") == [["50.0%", "50.0%", "1 of 1", "0.500x", "1", "0", "-", "-", "-"]]


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.mark.skipif(not BROWSER, reason="needs Chromium on the PATH")
@pytest.mark.parametrize("kind", PICTURES)
def test_a_real_browser_shows_the_whole_page(shown, pages, kind):
    for width in (360, 1280):
        shown.open(pages[kind].as_uri(), width)
        found = shown.js(FACTS)
        assert found["wide"] <= width and found["cut"] == 0
        assert found["pictures"] == PICTURES[kind] and found["outline"] == "solid"
    shown.open(pages[kind].as_uri(), scheme="dark")
    dark = shown.js(FACTS)
    assert (found["paper"], dark["paper"]) == ("rgb(255, 255, 255)", "rgb(22, 22, 22)")
    assert dark["ink"] != found["ink"] and dark["filter"].startswith("invert(") and found["filter"] == "none"
    content = shown.printed()
    assert content.startswith(b"%PDF") and 2 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 6
    assert len(re.findall(rb"/Subtype\s*/Image", content)) >= PICTURES[kind]
