"""What a person sees of learn_task: a bar on a terminal and in a notebook, and nothing in a pipe."""

import os
import pathlib
import pty
import subprocess
import sys
import types

import pytest

from cwps_jax.train.records import Progress
from cwps_jax.train.watched import watched

ROOT = pathlib.Path(__file__).parent.parent
EPOCHS = """
from cwps_jax.train.records import Progress
from cwps_jax.train.watched import watched

with watched("[red]<b>") as observe:
    for epoch in (1, 2):
        observe(Progress("cwps", "soft", epoch, 2, epoch == 2, 0.5, 0.25, 0.4, 0.0, 1.0))
"""


def test_a_terminal_shows_a_bar_and_the_name_as_it_is():
    main, terminal = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "140", "TERM": "xterm"}
    command = [sys.executable, "-c", EPOCHS]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=terminal, env=environment, check=True)
    os.close(terminal)
    seen = b""
    try:
        while part := os.read(main, 65536):
            seen += part
    except OSError:  # how Linux tells that nobody writes to a terminal any more
        pass
    os.close(main)
    text = seen.decode()
    assert done.stdout == b""  # only errors go to this terminal
    assert "[red]<b>" in text and "epoch   2/2  loss 0.500  accuracy 0.250" in text and "2/2" in text


def test_a_pipe_shows_nothing(capfd):
    with watched("birds") as observe:
        observe(Progress("cwps", "soft", 1, 2, False, 0.5, 0.25, 0.4, 0.0, 1.0))
    assert capfd.readouterr() == ("", "")


def test_a_notebook_shows_a_bar_without_widgets_and_an_escaped_name(monkeypatch):
    shown = []

    class Handle:
        def update(self, data, raw):
            shown.append(data)

    def display(data, raw, display_id):
        assert raw and display_id
        shown.append(data)
        return Handle()

    shell = types.SimpleNamespace(kernel=object())
    fake = types.SimpleNamespace(get_ipython=lambda: shell, display=types.SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython", fake)
    monkeypatch.setitem(sys.modules, "IPython.display", fake.display)
    exec(EPOCHS, {})
    assert [one["text/plain"][:17] for one in shown] == [
        "[red]<b>: startin",
        "[red]<b>   cwps  ",
        "[red]<b>   cwps  ",
    ]
    assert '<progress value="2" max="2">' in shown[-1]["text/html"]
    assert "&lt;b&gt;" in shown[-1]["text/html"] and "<b>" not in shown[-1]["text/html"]
    shell.kernel = None  # IPython on a terminal
    exec(EPOCHS, {})
    assert len(shown) == 3


RUN = """
from cwps_jax import from_python, run

def learn(config, folder, console):
    with RunProgress((), 2, console) as progress, console.status("looking"):
        progress.epoch("birds", Progress("cwps", "soft", 2, 2, True, 0.5, 0.25, 0.4, 0.0, 1.0))

import cwps_jax.finish
from cwps_jax.report.progress import RunProgress
run.learn, cwps_jax.finish.finish = learn, lambda config, folder, console: {}
from_python.learn_tasks({"tasks": ("birds",), "source": "digits", "compilation_cache": ""}, "run")
"""


def test_a_real_kernel_shows_the_last_epoch_and_a_run_its_lines(tmp_path):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    first = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{EPOCHS}"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in (first, RUN)])
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=120, resources=place).execute()
    (output,) = notebook.cells[0].outputs
    assert '<progress value="2" max="2">' in output["data"]["text/html"]
    assert "epoch   2/2" in output["data"]["text/plain"]
    *outputs, result = notebook.cells[1].outputs  # rich warns on stderr where it misses widgets
    assert {one["name"] for one in outputs} == {"stdout"} and result["data"]["text/plain"] == "{}"
    assert "birds      cwps     soft     epoch   2/2" in "".join(one["text"] for one in outputs)
