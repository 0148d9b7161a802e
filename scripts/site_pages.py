"""What mkdocs.yml calls: the repository's own pages in the site, and links that work here and there.

README.md, CONTRIBUTING.md, CHANGELOG.md and launch/README.md are pages of the site as they stand. A link of
any page is written as it works in the repository; here it is turned to the page of the site, or to a copy of
the file that it names.
"""

import os
import pathlib
import posixpath
import re

from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).parent.parent
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "launch/README.md": "launch.md",
}
COPIES = "repository"  # the folder of files that pages link to and that are no pages
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?(?=\))")


def on_files(files: Files, config) -> Files:
    """Adds the pages that lie outside docs/, and the files that any page links to."""
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for source in [_source(file.src_uri) for file in files.documentation_pages()]:
        for found in LINK.finditer((ROOT / source).read_text()):
            target = _target(source, found["path"])
            copy = target and _in_site(target)
            if copy and copy.startswith(f"{COPIES}/") and not files.get_file_from_path(copy):
                _add_copy(files, config, target, copy)
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Turns a page's links to what the site has."""
    source, here = _source(page.file.src_uri), posixpath.dirname(page.file.src_uri)

    def turned(found: re.Match) -> str:
        target = _target(source, found["path"])
        if target is None:
            return found[0]  # code, or broken: which --strict tells
        return posixpath.relpath(_in_site(target), here or ".") + (found["anchor"] or "")

    return LINK.sub(turned, markdown)


def _add_copy(files: Files, config, target: str, copy: str) -> None:
    """Adds a copy of a file; of a folder, its files and a page that lists them."""
    if not (ROOT / target).is_dir():
        files.append(File.generated(config, copy, abs_src_path=str(ROOT / target)))
        return
    listed = sorted(path for path in (ROOT / target).iterdir() if path.is_file())
    lines = [f"# {target}", "", *(f"- [{path.name}]({path.name})" for path in listed)]
    files.append(File.generated(config, copy, content="\n".join(lines)))
    for path in listed:
        files.append(File.generated(config, f"{COPIES}/{target}/{path.name}", abs_src_path=str(path)))


def _source(page: str) -> str:
    """Returns the file of the repository that a page of the site is made of."""
    return next((source for source, made in OUTSIDE.items() if made == page), f"docs/{page}")


def _target(source: str, link: str) -> str | None:
    """Returns the file of the repository that a link of a source means, None where there is none."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    inside = not path.startswith("..") and os.path.exists(ROOT / path)
    return path if inside else None


def _in_site(target: str) -> str:
    """Returns the path in the site of a file of the repository."""
    if (ROOT / target).is_dir():
        page = posixpath.join(target, "README.md")
        return OUTSIDE.get(page, f"{COPIES}/{target}/index.md")
    if target in OUTSIDE:
        return OUTSIDE[target]
    if target.startswith("docs/") and not target.startswith("docs/results/"):
        return target.removeprefix("docs/")
    return f"{COPIES}/{target}"
