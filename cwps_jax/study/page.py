"""The HTML page of a study."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from cwps_jax.report.html_page import Section, html_page
from cwps_jax.study.tables import continual_table, groups_table, how_to_read, tasks_table


def page(report: Mapping[str, Any], pictures: Mapping[int, Sequence[tuple[pathlib.Path, str]]]) -> str:
    """Returns the page.

    Args:
        report: see `summarise`.
        pictures: {number of a section: paths of its PNG files, and what each shows}.
    """
    done = report["cells"]
    lead = (
        f"{done['finished']} of {done['asked']} cells, {report['seconds'] / 60:.1f} minutes of computing. "
        f"{how_to_read(report)}"
    )
    sections = [
        Section(
            section["title"],
            section["backbone"],
            tables={
                "What each group reached, and what a task costs": groups_table(section),
                "Test accuracy by task": tasks_table(section),
                "What tasks do to each other, and all that is stored": continual_table(section),
            },
            pictures=pictures.get(number, ()),
        )
        for number, section in enumerate(report["sections"])
    ]
    return html_page(report["title"] or "Study", [lead], sections)
