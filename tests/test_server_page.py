"""The server's page in a real browser: dropped pictures, the keyboard, a phone, the dark."""

import re

import pytest
from browsing import BROWSER, browser
from serving import PlainBank, running

import cwps_jax as cwps

pytestmark = pytest.mark.skipif(not BROWSER, reason="needs Chromium on the PATH")
LOADED = "document.querySelectorAll('#tasks > li').length === 3"
DONE = "document.getElementById('status').textContent.endsWith('answered')"
TOKEN = "a-long-enough-token"


@pytest.fixture(scope="module")
def address(served_pool):
    with running(PlainBank(served_pool), served_pool) as client:
        yield str(client.base_url)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


def test_tasks_are_shown_with_bytes_and_owners(page, address, served_pool):
    page.open(address)
    page.wait(LOADED)
    text = page.js("document.getElementById('tasks').innerText")
    assert "digits@1" in text and f"{served_pool.version('digits').bytes / 1000:.1f} kB" in text
    labels = page.js("[...document.querySelectorAll('svg')].map(one => one.getAttribute('aria-label'))")
    own = served_pool.relation("negative")["negative"]
    assert "Channels of negative: " in labels[1] and f"{100 * own:.1f} % its own" in labels[1]
    widths = "[...one.children].map(bar => bar.width.baseVal.value)"
    bars = f"[...document.querySelectorAll('svg')].map(one => {widths})"
    assert [sum(found) for found in page.js(bars)] == pytest.approx([100] * 3)
    assert "Answers nothing" in text


def test_pictures_that_are_chosen_or_dropped_are_answered_by_every_task(
    page, address, served_pool, served_files
):
    page.open(address)
    page.choose("#files", *served_files[:2])
    page.wait(DONE)
    assert page.js("document.getElementById('status').textContent") == "2 of 2 pictures answered"
    shown = page.js("document.querySelector('#answers article:last-child').innerText")
    for task in ("digits", "negative"):
        (((name, share),),) = cwps.predict(served_pool, task, [served_files[0]]).top(1)
        assert re.search(rf"{task}\s+{re.escape(name)}\s+{100 * share:.1f} %", shown), shown
    assert page.js("[...document.images].every(one => one.alt && one.naturalWidth > 0)")
    page.js("""(() => { const held = new DataTransfer(); held.items.add(new File(['no picture'], 'odd.png'));
      document.getElementById('status').textContent = '';
      const given = {dataTransfer: held, bubbles: true};
      document.getElementById('drop').dispatchEvent(new DragEvent('drop', given));
    })()""")
    page.wait(DONE)
    assert page.js("document.getElementById('status').textContent") == "0 of 1 pictures answered"
    assert "not a readable picture" in page.js("document.querySelector('#answers .wrong').textContent")


def test_the_keyboard_reaches_everything_and_sees_where_it_is(page, address):
    page.open(address)
    reached = []
    for _ in range(2):
        page.press("Tab", 9)
        reached.append(page.js("document.activeElement.id || document.activeElement.localName"))
        assert page.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert reached == ["summary", "files"]
    names = "[...document.querySelectorAll('input')].every(one => one.labels.length === 1)"
    assert page.js(names)


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_cut_off(page, address, served_files, width):
    page.open(address, width)
    page.choose("#files", served_files[0])
    page.wait(DONE)
    page.wait(LOADED)
    assert page.js("document.documentElement.scrollWidth") <= page.js("innerWidth") == width
    ends = "[...document.querySelectorAll('body *')].map(one => one.getBoundingClientRect().right)"
    assert max(page.js(ends)) <= width + 1


def test_it_is_light_or_dark_as_its_reader_is(page, address):
    seen = []
    for scheme in ("light", "dark"):
        page.open(address, scheme=scheme)
        seen.append(page.js("getComputedStyle(document.body).backgroundColor"))
    assert seen == ["rgb(255, 255, 255)", "rgb(22, 22, 22)"]


def test_it_asks_for_a_token_and_uses_it(page, served_pool, served_files):
    with running(PlainBank(served_pool), served_pool, token=TOKEN) as client:
        page.open(str(client.base_url))
        page.wait("document.getElementById('access').open")
        assert "no token is given" in page.js("document.getElementById('total').textContent")
        page.js("document.getElementById('token').focus()")
        page.call("Input.insertText", text=TOKEN)
        page.press("Enter", 13)
        page.wait(LOADED)
        page.choose("#files", served_files[0])
        page.wait(DONE)
        assert page.js("document.getElementById('status').textContent") == "1 of 1 pictures answered"
