"""docs/coming_from_peft.md: our side of it runs as it stands, and its words are words of the package."""

import contextlib
import io
import pathlib
import re

import chex
import pytest

import cwps_jax as cwps

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "coming_from_peft.md"
# Fewer images, which is all that differs from the page.
QUICK = {
    "(slice(400), slice(400, 600))": "(slice(100), slice(400, 450))",
    '"epochs": 3}': '"epochs": 3, "shots": 16}',
}


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> tuple[dict, str]:
    """The names after all blocks, and all that was printed."""
    names: dict = {}
    printed = io.StringIO()
    text = PAGE.read_text()
    for slow, quick in QUICK.items():
        assert text.count(slow) == 1
        text = text.replace(slow, quick)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("page")))
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL)):
            exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)
    return names, printed.getvalue()


def test_what_is_loaded_is_what_was_learned(page):
    names, printed = page
    chex.assert_trees_all_equal(names["plain"], names["learned"].variables)
    chex.assert_trees_all_close(names["logits"], names["predictions"].logits, atol=1e-4)
    assert names["loaded"].tasks == ("digits",)  # "turned" came and went
    assert "turned" in names["second"].relation
    assert "trainable params: " in printed and "# 1 task on resnet8" in printed
    assert [row["task"] for row in names["results"]["rows"]] == ["negative"]


def test_every_word_of_the_package_that_it_names_is_there():
    for path in {*re.findall(r"cwps\.([\w.]+)", PAGE.read_text())}:
        found = cwps
        for name in path.rstrip(".").split("."):
            found = getattr(found, name)
    for name in {*re.findall(r"(?:`|\b)pool\.(\w+)\(", PAGE.read_text())}:
        assert hasattr(cwps.Pool, name)
