"""Progress of a run, on the terminal and wherever its metrics are written."""

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from cwps_jax.report.metric_writer import MetricWriter
from cwps_jax.train.records import Progress
from cwps_jax.train.watched import described


class RunProgress:
    """Shows one bar over all epochs of a run and writes every epoch down.

    On a terminal the bar moves with each epoch; a line stays for each finished stage, there and in a log.

    Args:
        writers: of its metrics; they are closed at the end.
        epochs: epochs of the whole run.
        console: where to show it.
    """

    def __init__(self, writers: Sequence[MetricWriter], epochs: int, console: Console) -> None:
        self.console = console
        self._left = TimeRemainingColumn()
        self._writers = writers
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("epochs,"),
            self._left,
            TextColumn("left"),
            console=console,
            transient=True,
            speed_estimate_period=float("inf"),  # the mean over all epochs, however long one takes
        )
        self._row = self._bar.add_task("starting", total=epochs)

    def __enter__(self) -> "RunProgress":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()
        for writer in self._writers:
            writer.close()

    def say(self, text: str) -> None:
        """Shows a line of text that stays."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def skip(self, epochs: int) -> None:
        """Removes epochs that need not be trained from the run's total."""
        self._bar.update(self._row, total=(self._bar.tasks[0].total or 0) - epochs)

    def epoch(self, task: str, progress: Progress) -> None:
        """Shows and writes down one epoch of a task."""
        for writer in self._writers:
            writer.write(task, progress)
        line = described(task, progress)
        self._bar.update(self._row, advance=1, description=line)
        if progress.last_of_stage:
            self.say(f"{line}  {self._left.render(self._bar.tasks[0])} left")
