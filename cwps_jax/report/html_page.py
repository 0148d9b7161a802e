"""The HTML page of a run or a study: everything in one file, which asks nothing of any network."""

import base64
import dataclasses
import html
import pathlib
from collections.abc import Mapping, Sequence

Table = tuple[Sequence[str], Sequence[Sequence[str]]]  # its header, and its rows
WIDE = 1800  # pixels of a picture that gets all of the width
LONGEST_NUMBER = 24  # letters; a column of longer texts is of words, which wrap

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #ffffff; --muted: #5c5c5c; --rule: #d9d9d9;
  --link: #0057a3; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececec; --paper: #161616; --muted: #a8a8a8; --rule: #3d3d3d; --link: #86c1ff; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 80rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.25; }
a { color: var(--link); }
p, figcaption { color: var(--muted); max-width: 46rem; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.scroll { overflow-x: auto; margin: 0.5rem 0 1.5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.85rem;
  overflow-wrap: normal; }
th, td { padding: 0.3rem 0.5rem; border-bottom: 1px solid var(--rule); text-align: right;
  white-space: nowrap; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
thead th { color: var(--muted); font-weight: 600; vertical-align: bottom; white-space: normal;
  min-width: 4.5rem; }
td.words, thead th.words { text-align: left; white-space: normal; min-width: 11rem; overflow-wrap: anywhere; }
.pictures { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); }
figure { margin: 0; }
.wide { grid-column: 1 / -1; }
img { width: 100%; height: auto; background: white; border: 1px solid var(--rule); border-radius: 4px; }
@media screen and (prefers-color-scheme: dark) {
  /* Light and dark change places, and hues stay: white pictures would dazzle. */
  img { filter: invert(0.92) hue-rotate(180deg); border-color: transparent; }
}
@media print {
  :root { color-scheme: light; --ink: #000; --paper: #fff; --muted: #444; --rule: #bbb; --link: #000; }
  body { max-width: none; padding: 0; font-size: 9pt; }
  .scroll { overflow: visible; }
  thead th { min-width: 0; }
  table { font-size: 6.5pt; }
  th, td { padding: 0.15rem 0.3rem; }
  th { white-space: normal; }
  .pictures { grid-template-columns: 1fr 1fr; }
  h2, h3 { break-after: avoid; }
  figure, tr { break-inside: avoid; }
  nav { display: none; }
}
"""


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page, to which the list of sections at its top leads.

    Attributes:
        title: of the section.
        beside: what stands smaller beside its title; "" for nothing.
        lines: what is told before the tables.
        tables: {title: table}.
        pictures: paths of PNG files, and what each shows.
    """

    title: str
    beside: str = ""
    lines: Sequence[str] = ()
    tables: Mapping[str, Table] = dataclasses.field(default_factory=dict)
    pictures: Sequence[tuple[pathlib.Path, str]] = ()


def html_page(title: str, lead: Sequence[str], sections: Sequence[Section]) -> str:
    """Returns the page, for a phone, a screen or paper, light or dark as its reader is.

    Args:
        title: of the page.
        lead: what is told first.
        sections: in their order.
    """
    title = html.escape(title)
    links = "".join(
        f'<li><a href="#section{number}">{html.escape(section.title)}</a></li>'
        for number, section in enumerate(sections)
    )
    body = "".join(_section(number, section) for number, section in enumerate(sections))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n"
        f'{_lines(lead)}<nav aria-label="Sections"><ul>{links}</ul></nav>\n'
        f"{body}\n</main>\n</body>\n</html>\n"
    )


def _section(number: int, section: Section) -> str:
    beside = f" <small>({html.escape(section.beside)})</small>" if section.beside else ""
    tables = "".join(_table(name, table) for name, table in section.tables.items())
    figures = "".join(_figure(path, text) for path, text in section.pictures)
    above = "<h3>Pictures</h3>" if tables else ""
    shown = f'{above}<div class="pictures">{figures}</div>' if figures else ""
    heading = f"<h2>{html.escape(section.title)}{beside}</h2>"
    return f'<section id="section{number}">{heading}{_lines(section.lines)}{tables}{shown}</section>\n'


def _lines(lines: Sequence[str]) -> str:
    return "".join(f"<p>{html.escape(line)}</p>\n" for line in lines)


def _table(name: str, table: Table) -> str:
    header, rows = table
    words = [max(map(len, column)) > LONGEST_NUMBER for column in zip(*rows, strict=True)]
    head = "".join(
        f'<th scope="col"{" class=words" * worded}>{html.escape(text)}</th>'
        for text, worded in zip(header, words or [False] * len(header), strict=True)
    )
    body = "".join(
        f'<tr><th scope="row">{html.escape(first)}</th>'
        + "".join(
            f"<td{' class=words' * worded}>{html.escape(text)}</td>"
            for text, worded in zip(rest, words[1:], strict=True)
        )
        + "</tr>"
        for first, *rest in rows
    )
    name = html.escape(name)
    # A wide table scrolls within its place; the keyboard reaches it there.
    return (
        f'<h3>{name}</h3><div class="scroll" tabindex="0" role="region" aria-label="{name}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>\n"
    )


def _figure(path: pathlib.Path, text: str) -> str:
    content, told = path.read_bytes(), html.escape(text)
    kind = ' class="wide"' if int.from_bytes(content[16:20]) > WIDE else ""
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    image = f'<img alt="{told}. The tables above have its numbers." src="{source}">'
    return f"<figure{kind}>{image}<figcaption>{told}.</figcaption></figure>"
