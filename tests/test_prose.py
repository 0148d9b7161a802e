"""The style of scripts/prose.toml, which `make lint-docs` applies: each rule finds its own example."""

import pytest

from scripts.prose import STYLE, docstrings, findings


@pytest.mark.parametrize("rule", STYLE["rules"], ids=lambda rule: rule["name"])
def test_a_rule_finds_what_it_is_for(rule):
    (found,) = findings("page.md", f"A heading\n\n{rule['wrong']}\n")
    assert found.startswith("page.md:3: ") and found.endswith(f"[cwps.{rule['name']}]")
    assert list(findings("page.md", rule["right"])) == []


def test_a_word_has_its_replacement():
    assert list(findings("page.md", "It is measured anew.")) == [
        "page.md:1: 'anew': write 'again' instead of 'anew' [cwps.words]"
    ]


def test_a_sentence_is_read_over_the_ends_of_lines_and_not_over_the_ends_of_items():
    (found,) = findings("page.md", "- It ends.\n\n- It takes two bytes\n  a channel.\n")
    assert found.startswith("page.md:3: 'bytes a channel'")
    assert list(findings("page.md", "- two bytes\n- a channel\n")) == []


@pytest.mark.parametrize("text", ["`bytes a channel`", "```\nbytes a channel\n```", "[it](anew)"])
def test_code_and_addresses_are_not_prose(text):
    assert list(findings("page.md", f"This is\n\n{text}\n")) == []


def test_stock_rules_apply():
    (found,) = findings("page.md", "It is the most unique of them.")
    assert "uncomparables" in found


def test_docstrings_are_read_and_code_is_not():
    source = (
        'bytes = "two bytes a task"\n\n\ndef kept():\n    """Is kept.\n\n    Two bytes a task.\n    """\n'
    )
    (found,) = findings("module.py", docstrings(source))
    assert found.startswith("module.py:7: 'bytes a task'")
