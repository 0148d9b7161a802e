"""Progress of a study: cells done, and the time left."""

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from cwps_jax.train.records import Progress as Epoch


class StudyProgress(Progress):
    """One bar over the cells that are still to be run; it moves with each epoch.

    Args:
        cells: of the whole study.
        finished: of them, before this process.
        console: where to show it.
    """

    def __init__(self, cells: int, finished: int, console: Console) -> None:
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[done]}/{task.fields[cells]} cells,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            transient=True,
            speed_estimate_period=float("inf"),  # the mean over all cells, however long one takes
        )
        self._done, self._left, self._share = finished, cells - finished, 0.0
        self._row = self.add_task("starting", total=self._left, done=finished, cells=cells)

    def say(self, text: str) -> None:
        """Shows a line that stays."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def epoch(self, cell: str, epochs: int, progress: Epoch) -> None:
        """Moves the bar by an epoch of a cell that has so many."""
        share = min(1 / epochs, 1 - self._share)
        self._share += share
        told = f"{cell}: {progress.stage} {progress.epoch}/{progress.epochs}"
        self.update(self._row, advance=share, description=told)

    def cell_done(self, text: str) -> None:
        """Moves the bar to the cell's end, and shows a line of it."""
        self._done += 1
        self.update(self._row, advance=1 - self._share, done=self._done)
        self._share = 0.0
        self.say(f"{self._done}/{self.tasks[0].fields['cells']} {text}")
