"""Command line: ``python -m cwps_jax.study --config configs/studies/digits_small.py --workdir runs/study``.

Runs the cells that have no result yet, then writes report.html, report.json, report.md and the pictures of
all that are finished.
"""

import pathlib
import sys

from absl import flags

from cwps_jax import command_line
from cwps_jax.compilation_cache import start_jax
from cwps_jax.extras import check_extra
from cwps_jax.study.grid import Study, read_study
from cwps_jax.workdir import check_folder

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the study; by default runs/studies/ and the name of the study file."
)
_YES = flags.DEFINE_bool("yes", False, "Run more than 10,000 cells.")
_REPORT = flags.DEFINE_bool("report", False, "Run nothing: write the report of the cells that are finished.")


def main(study: Study) -> None:
    """Runs a study, and writes its report."""
    given = _WORKDIR.value or pathlib.Path("runs", "studies", command_line.config_name())
    check_folder("workdir", given)
    check_extra("report", "the report of a study")
    workdir = pathlib.Path(given)

    from cwps_jax.study.running import check_size, run_study

    check_size(study, _YES.value)
    start_jax(study.cells[0].config)

    from rich.console import Console

    from cwps_jax.study.report import write_report

    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        if not _REPORT.value:
            run_study(study, workdir, console)
    finally:
        write_report(study, workdir, console)


def run() -> None:
    """Entry point of ``python -m cwps_jax.study``."""
    command_line.run(main, read_study)


if __name__ == "__main__":
    run()
