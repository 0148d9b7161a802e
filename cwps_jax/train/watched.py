"""The progress of one task's training: a bar on a terminal, or in a notebook."""

import contextlib
import html
import math
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from cwps_jax import distributed
from cwps_jax.train.records import Observe, Progress, unobserved


def described(task: str, progress: Progress) -> str:
    """Returns one epoch of a task in a line."""
    reached = "" if math.isnan(progress.metric) else f"accuracy {progress.metric:.3f}  "
    return (
        f"{task:<10} {progress.method:<8} {progress.stage:<8} epoch {progress.epoch:>3}/"
        f"{progress.epochs}  loss {progress.loss:.3f}  {reached}"
        f"private {progress.private:.2f}x"
    )


@contextlib.contextmanager
def watched(task: str) -> Iterator[Observe]:
    """Gives a function that shows each epoch of a task, while its block runs.

    It shows a bar if stderr is a terminal, so that stdout may be redirected. In a pipe, in a log, and in all
    processes except the first, nothing is shown.

    Args:
        task: its name.
    """
    if not distributed.first():
        yield unobserved
    elif _in_notebook():
        yield _notebook_bar(task)
    elif sys.stderr.isatty():
        text = TextColumn("{task.description}", markup=False)  # a task may be called [red]
        columns = (text, BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn())
        with Bar(*columns, console=Console(stderr=True)) as bar:
            row = bar.add_task(f"{task}: starting", total=None)

            def show(progress: Progress) -> None:
                line = described(task, progress)
                bar.update(row, completed=progress.epoch, total=progress.epochs, description=line)

            yield show
    else:
        yield unobserved


def _in_notebook() -> bool:
    """Whether this process is a notebook's: IPython with a kernel, which IPython in a terminal lacks."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


def _notebook_bar(task: str) -> Observe:
    """Shows a bar of plain HTML, which needs no widgets and stays in a saved notebook."""
    from IPython.display import display

    def shown(line: str, epoch: int, epochs: int) -> dict[str, str]:
        bar = f'<progress value="{epoch}" max="{epochs}"></progress>'
        return {"text/plain": line, "text/html": f"{bar} <code>{html.escape(line)}</code>"}

    handle = display(shown(f"{task}: starting", 0, 1), raw=True, display_id=True)

    def show(progress: Progress) -> None:
        handle.update(shown(described(task, progress), progress.epoch, progress.epochs), raw=True)

    return show
