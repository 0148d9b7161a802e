"""Writes the report of a study: report.json, report.md, report.html and its pictures."""

import pathlib

from rich.console import Console

from cwps_jax.report.results import write_json
from cwps_jax.study.cells import finished_cells
from cwps_jax.study.grid import Study


def write_report(study: Study, workdir: pathlib.Path, console: Console) -> None:
    """Writes what the finished cells say, and nothing where there are none.

    Raises:
        CwpsError: a cell's file is of another format or config, or two disagree on data or versions.
    """
    from cwps_jax.files import write_atomically
    from cwps_jax.study.page import page
    from cwps_jax.study.pictures import draw_study  # matplotlib is not needed to run
    from cwps_jax.study.summary import summarise
    from cwps_jax.study.tables import markdown

    finished = finished_cells(workdir, study.cells)
    if not finished:
        console.print(f"{workdir}: no cell is finished, so there is no report", highlight=False)
        return
    report = summarise(study, finished)
    write_json(workdir / "report.json", report)
    write_atomically(workdir / "report.md", markdown(report) + "\n")
    pictures = draw_study(report, workdir / "report")
    write_atomically(workdir / "report.html", page(report, pictures))
    for name in ("report.json", "report.md", "report.html"):
        console.print(f"Report: {workdir / name}", soft_wrap=True, highlight=False)
