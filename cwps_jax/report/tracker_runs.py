"""The parts that trackers share: a workdir's run, which a resumed run continues, and time limits."""

import json
import pathlib

from cwps_jax.files import write_atomically

PROJECT = "cwps_jax"  # where a tracker puts runs that its own environment variables give no other place
LONGEST_END = 10  # seconds that the end of a run waits for a tracker: a preempted one has 30 for all


def known_run(workdir: pathlib.Path, tracker: str) -> str | None:
    """Returns the id of the workdir's run at a tracker, None if it has none yet."""
    return _known(workdir).get(tracker)


def remember_run(workdir: pathlib.Path, tracker: str, run: str) -> None:
    """Writes down the id of the workdir's run at a tracker, in tracker_runs.json."""
    known = {**_known(workdir), tracker: run}
    write_atomically(workdir / "tracker_runs.json", json.dumps(known, indent=2) + "\n")


def _known(workdir: pathlib.Path) -> dict[str, str]:
    file = workdir / "tracker_runs.json"
    return json.loads(file.read_text()) if file.exists() else {}
