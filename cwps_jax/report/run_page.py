"""The HTML page of a run's workdir, report.html."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from cwps_jax.config import RunConfig
from cwps_jax.report.html_page import Section, Table, html_page
from cwps_jax.report.rounds import rounds_table
from cwps_jax.report.rows import metric_of, names
from cwps_jax.report.run_tables import (
    BESIDE,
    accuracies_table,
    budgets_table,
    continual_lines,
    forgetting_table,
    methods_table,
    run_lines,
    run_title,
    storing_table,
    tasks_table,
    totals_table,
)


def run_page(results: Mapping[str, Any], config: RunConfig, pictures: Sequence[pathlib.Path]) -> str:
    """Returns the page.

    Args:
        results: the content of results.json, see docs/results.md.
        config: the config of the run.
        pictures: its PNG files. For several tasks the page shows the overview of channels, and not each
            task's own picture.
    """
    rows = results["rows"]
    methods, tasks = names(rows, "method"), names(rows, "task")
    overview = any(path.name == "channels.png" for path in pictures)
    shown = [path for path in pictures if not (overview and path.name.startswith("channels_"))]
    tables = {"What each task reached, and what it takes": tasks_table(results)}
    if len(methods) > BESIDE:
        tables[f"Test {metric_of(rows)} by task"] = accuracies_table(results, tasks)
    if len(methods) > 1:
        tables["Means over the tasks"] = methods_table(results)
    tables["What is stored of each task, and what learning it took"] = storing_table(results)
    if results.get("curves"):
        tables["Budgets that each task was hardened to"] = budgets_table(results)
    if results.get("rounds"):
        tables["Rounds over the tasks, means"] = rounds_table(results["rounds"])
    together = {"All bytes stored, the pre-trained model included": totals_table(results)}
    if results["forgetting"]:
        together = {"Each stored model when it was learned and now": forgetting_table(results), **together}
    versions = [(name, str(version)) for name, version in results["versions"].items()]
    made_with = {
        "Settings that differ from the defaults": _settings_table(config),
        "Versions": (("", "version"), versions),
    }
    sections = [
        Section("Tasks", tables=tables),
        Section("All tasks together", lines=continual_lines(results), tables=together),
        Section("Pictures", pictures=[(path, _told(path)) for path in shown]),
        Section(
            "Settings and versions",
            lines=["config.json in the workdir has all settings, and what each task was learned with."],
            tables=made_with,
        ),
    ]
    return html_page(run_title(results), run_lines(results), sections)


def _settings_table(config: RunConfig) -> Table:
    rows = []
    for field in dataclasses.fields(RunConfig):
        value = getattr(config, field.name)
        default = {} if field.default is dataclasses.MISSING else field.default
        if field.name != "settings" and value != default:
            rows.append((f"config.{field.name}", str(value)))
    for name, method in config.settings.items():
        for field in dataclasses.fields(method):
            value = getattr(method, field.name)
            if value != getattr(type(method)(), field.name):
                rows.append((f"config.{name}.{field.name}", str(value)))
    return ("key", "value"), rows


def _told(picture: pathlib.Path) -> str:
    """Returns what a picture shows and how to read it: the text that its file has inside."""
    with Image.open(picture) as image:
        texts = image.info
    return f"{texts['Title']}. {texts['Description'].removesuffix('.')}"
