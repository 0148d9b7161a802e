"""README.md: its tables are current, it is short. Its example runs in test_extras.py."""

import pathlib
import re
import runpy
import sys

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_its_tables_are_those_of_the_committed_results(monkeypatch):
    """And those of docs/: it ends with a message where a page is not current."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(sys, "argv", ["render.py", "--check"])
    runpy.run_path(str(ROOT / "benchmarks" / "render.py"), run_name="__main__")


def test_it_is_short():
    words = re.findall(r"[A-Za-z]\w*", re.sub(r"\]\([^)]*\)", "]", README))
    assert len(words) < 680, "move it to a page in docs/"
