"""A pool whose folder cannot be written to, or whose disk is full: one line, and all that it holds stays."""

import contextlib
import errno
import logging
import os
import subprocess

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from cwps_jax import command_line, methods
from cwps_jax.errors import CwpsError
from cwps_jax.methods.method import Stored
from cwps_jax.store import Pool
from cwps_jax.workdir import check_workdir

FULL = "RESOURCE_EXHAUSTED: Error writing: No space left on device [os_error_code='28']"  # TensorStore's


@pytest.fixture
def mounted():
    """Mounts a file system until the test ends; skips it where that is not allowed."""
    with contextlib.ExitStack() as ends:

        def mount(folder, *options):
            if subprocess.run(["mount", *options, str(folder)], capture_output=True).returncode:
                pytest.skip("no right to mount: the same faults are injected beside")
            ends.callback(subprocess.run, ["umount", "-l", str(folder)], check=True)

        yield mount


@pytest.fixture
def learned(tiny_variables):
    params = jax.tree.map(lambda leaf: np.asarray(leaf) + 1, tiny_variables["params"])
    return Stored({"params": params, "other": {"batch_stats": tiny_variables["batch_stats"]}})


@pytest.fixture
def pool(tmp_path, tiny_variables, tiny_layout, learned):
    (tmp_path / "disk").mkdir()
    return lambda: with_a(Pool.create(tmp_path / "disk" / "pool", tiny_variables, tiny_layout), learned)


def with_a(pool, learned):
    pool.add_stored("a", methods.Finetune(), learned, {})
    return pool


def assert_as_it_was(pool):
    again = Pool.open(pool.folder)
    assert again.index == pool.index and again.tasks == ("a",) and again.verify() == []


def failing(error):
    """A function that raises an error, whatever it is given."""

    def fail(*given, **named):
        raise error

    return fail


def assert_refused(action, *words):
    with pytest.raises(CwpsError) as told:
        action()
    assert all(word in str(told.value) for word in words) and "\n" not in str(told.value), told.value


@pytest.mark.parametrize("how", ["mounted", "injected"])
def test_a_pool_that_cannot_be_written_to_is_read_and_says_so(pool, learned, mounted, how, monkeypatch):
    pool = pool()
    disk = pool.folder.parent
    if how == "mounted":
        mounted(disk, "--bind", str(disk))
        subprocess.run(["mount", "-o", "remount,ro,bind", str(disk)], check=True)
    else:
        allowed = lambda path, mode: not mode & os.W_OK
        monkeypatch.setattr(os, "access", allowed)
    for action in (
        lambda: pool.add_stored("b", methods.Finetune(), learned, {}),
        lambda: pool.learning("b").__enter__(),
        lambda: pool.remove("a"),
    ):
        assert_refused(action, f"{pool.folder}: cannot be written to, so this pool is only read")
    assert_refused(lambda: check_workdir(disk), "cannot be written to; name another")
    assert_as_it_was(pool)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_folder_that_fails_while_it_is_written_is_one_line(pool, learned, monkeypatch, number):
    pool = pool()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing(OSError(number, os.strerror(number))))
        add = lambda: pool.add_stored("b", methods.Finetune(), learned, {})
        assert_refused(add, f"{pool.folder}: cannot be written (", os.strerror(number), "pool holds is whole")
    assert_as_it_was(pool)
    pool.add_stored("b", methods.Finetune(), learned, {})


@pytest.mark.parametrize("how", ["mounted", "injected"])
def test_a_full_disk_is_one_line_and_the_next_task_goes_in_when_there_is_room(
    pool, learned, mounted, how, monkeypatch, tmp_path
):
    if how == "mounted":
        mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=512k", "none")
    pool = pool()
    filled = tmp_path / "disk" / "filled"
    with monkeypatch.context() as patched:
        if how == "mounted":
            with contextlib.suppress(OSError), filled.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        else:
            patched.setattr(ocp.PyTreeCheckpointHandler, "save", failing(ValueError(FULL)))
        add = lambda: pool.add_stored("b", methods.Finetune(), learned, {})
        assert_refused(add, f"{pool.folder}: cannot be written (", "No space left on device", "make room")
    assert_as_it_was(pool)
    filled.unlink(missing_ok=True)
    pool.add_stored("b", methods.Finetune(), learned, {})
    assert Pool.open(pool.folder).tasks == ("a", "b")


def test_a_fault_of_the_program_is_not_told_as_one_of_the_disk(pool, learned, monkeypatch):
    pool = pool()
    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "save", failing(ValueError("a fault")))
    with pytest.raises(ValueError, match="^a fault$"):
        pool.add_stored("b", methods.Finetune(), learned, {})


def test_tracebacks_of_orbax_threads_are_not_shown_beside_the_line_that_is_raised():
    record = lambda level, file: logging.LogRecord("absl", level, file, 1, "text", (), None)
    assert not command_line._is_told(record(logging.ERROR, "site-packages/orbax/checkpoint/future.py"))
    assert command_line._is_told(record(logging.WARNING, "site-packages/orbax/checkpoint/future.py"))
    assert command_line._is_told(record(logging.ERROR, "site-packages/tensorboardX/writer.py"))
