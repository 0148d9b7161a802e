"""One HTML page of a study: everything in one file, which asks nothing of any network."""

import base64
import html
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from cwps_jax.study.tables import Table, continual_table, groups_table, how_to_read, tasks_table

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
.pictures { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); }
figure { margin: 0; }
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


def page(report: Mapping[str, Any], pictures: Mapping[int, Sequence[tuple[pathlib.Path, str]]]) -> str:
    """Returns the page.

    Args:
        report: see `summarise`.
        pictures: {number of a section: paths of its PNG files, and what each shows}.
    """
    title = html.escape(report["title"] or "Study")
    sections = report["sections"]
    links = [(f"section{number}", section["title"]) for number, section in enumerate(sections)]
    listed = "".join(f'<li><a href="#{place}">{html.escape(name)}</a></li>' for place, name in links)
    body = "".join(
        _section(number, section, pictures.get(number, ())) for number, section in enumerate(sections)
    )
    done = report["cells"]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n"
        f"<p>{done['finished']} of {done['asked']} cells, {report['seconds'] / 60:.1f} minutes of computing. "
        f'{html.escape(how_to_read(report))}</p>\n<nav aria-label="Sections"><ul>{listed}</ul></nav>\n'
        f"{body}\n</main>\n</body>\n</html>\n"
    )


def _section(number: int, section: Mapping[str, Any], pictures: Sequence[tuple[pathlib.Path, str]]) -> str:
    tables = (
        ("What each group reached, and what a task costs", groups_table(section)),
        ("Test accuracy by task", tasks_table(section)),
        ("What tasks do to each other, and all that is stored", continual_table(section)),
    )
    told = "".join(_table(name, table) for name, table in tables)
    heading = f"{html.escape(section['title'])} <small>({html.escape(section['backbone'])})</small>"
    figures = "".join(_figure(path, text) for path, text in pictures)
    shown = f'<h3>Pictures</h3><div class="pictures">{figures}</div>' if figures else ""
    return f'<section id="section{number}"><h2>{heading}</h2>{told}{shown}</section>\n'


def _table(name: str, table: Table) -> str:
    header, rows = table
    head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in header)
    body = "".join(
        f'<tr><th scope="row">{html.escape(first)}</th>'
        + "".join(f"<td>{html.escape(text)}</td>" for text in rest)
        + "</tr>"
        for first, *rest in rows
    )
    # A wide table scrolls within its place; the keyboard reaches it there.
    return (
        f'<h3>{name}</h3><div class="scroll" tabindex="0" role="region" aria-label="{name}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>\n"
    )


def _figure(path: pathlib.Path, text: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    told = html.escape(text)
    image = f'<img alt="{told}. The tables above have its numbers." src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{told}</figcaption></figure>"
