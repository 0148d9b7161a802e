"""Checks the English of pages and docstrings by proselint, in the style of prose.toml: `make lint-docs`."""

import ast
import functools
import pathlib
import re
import sys
import tomllib
from collections.abc import Iterator

from proselint.checks import __register__
from proselint.config import DEFAULT
from proselint.registry import CheckRegistry
from proselint.registry.checks import Check, CheckFlags, types
from proselint.registry.checks.engine import Fancy, RegexOptions
from proselint.tools import LintFile

ROOT = pathlib.Path(__file__).parent.parent
STYLE = tomllib.loads(pathlib.Path(__file__).with_suffix(".toml").read_text())
# What was written in the changelog stays as it was written.
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "launch/README.md")),
    *sorted((ROOT / "docs").glob("**/*.md")),
]
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
MODULES = sorted((ROOT / "cwps_jax").rglob("*.py"))
# Code, addresses of links and comments are not prose. Spaces take their place, so that positions stay.
NOT_PROSE = re.compile(r"^```.*?^```|^ {4}[^\n]*$|<!--.*?-->|(?<=\])\([^)\s]*\)", re.DOTALL | re.MULTILINE)
INLINE_CODE = re.compile(r"`[^`\n]*`")
# A line break inside a paragraph, a list item or a cell is a space.
WITHIN = re.compile(r"(?<=[^\n|])\n(?= *[^\s\-*|#>\d])")
# Examples, and the names of arguments, fields and exceptions.
NOT_TEXT = re.compile(r"^>>> .*?(?=^$|\Z)|^\*{0,2}\w+(, \*{0,2}\w+)*:", re.DOTALL | re.MULTILINE)


def prose(markdown: str) -> str:
    """Returns a page's prose, in which each character has the place that it has in the page."""
    text = NOT_PROSE.sub(lambda found: re.sub(r"\S", " ", found[0]), markdown)
    text = INLINE_CODE.sub(lambda found: "`" + "C" * (len(found[0]) - 2) + "`", text)
    return WITHIN.sub(" ", text)


def docstrings(source: str) -> str:
    """Returns the docstrings of a module, in which each line has the number that it has in the file."""
    lines, kept = source.splitlines(), [""] * source.count("\n")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node):
            text = node.body[0]
            for number in range(text.lineno - 1, text.end_lineno or 0):
                kept[number] = lines[number].strip().strip('"')
    return NOT_TEXT.sub(lambda found: re.sub(r"\S", " ", found[0]), "\n".join(kept))


def findings(name: str, markdown: str) -> Iterator[str]:
    """Yields a line for each place of a page that the style does not allow."""
    # The first name that matches a check decides.
    checks = dict.fromkeys(STYLE["off"], False) | DEFAULT["checks"] | {"cwps": True}
    _register()
    for result in LintFile(name, prose(markdown)).lint({"max_errors": 1000, "checks": checks}):
        # The linter puts a line break before the text.
        start, end = (max(place - 1, 0) for place in result.check_result.span)
        line, said = markdown.count("\n", 0, start) + 1, " ".join(markdown[start:end].split())
        yield f"{name}:{line}: {said!r}: {result.check_result.message} [{result.check_result.check_path}]"


@functools.cache
def _register() -> None:
    """Registers the stock checks and our rules, once."""
    CheckRegistry().register_many(__register__)
    CheckRegistry().register_many(tuple(_rule(**rule) for rule in STYLE["rules"]))
    words = {word.replace(" ", " +"): instead for word, instead in STYLE["words"].items()}
    message = "write {!r} instead of {!r}"
    CheckRegistry().register(Check(types.PreferredForms(words), path="cwps.words", message=message))


def _rule(name: str, pattern: str, write: str, **_: str) -> Check:
    return Check(
        types.ExistenceSimple(pattern.replace(" ", " +")),
        engine=Fancy(RegexOptions(case_insensitive=False, multi_line=True)),
        path=f"cwps.{name}",
        message=f"write {write}",
        flags=CheckFlags(allow_quotes=True),
    )


if __name__ == "__main__":
    texts = [(page, page.read_text()) for page in PAGES]
    texts += [(module, docstrings(module.read_text())) for module in MODULES]
    found = [line for path, text in texts for line in findings(str(path.relative_to(ROOT)), text)]
    print(*found, sep="\n", end="\n" if found else "")
    sys.exit(bool(found))
