"""A folder and its copy in a bucket: whole at any moment, whoever dies, and never two writers."""

import json
import pathlib
import threading

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from test_store import add_task

import cwps_jax as cwps
from cwps_jax import distributed
from cwps_jax.buckets import Bucket, Mirror, bucket, local_folder
from cwps_jax.errors import CwpsError
from cwps_jax.pool.__main__ import main as pool_command
from cwps_jax.workdir import opened_workdir


class Killed(BaseException):
    """The process has died: nothing catches it."""


class Store(MemoryFileSystem):
    """A store in memory, whose requests that change something can end in the death of who asks."""

    protocol = "fake"
    left = 10**9  # requests until then
    answered = False  # whether the last one is done and its answer lost
    lock = threading.Lock()
    failing: Exception | None = None  # what every request says
    failures = 0  # of the next requests, which then succeed

    def _count(self, action):
        with Store.lock:
            if Store.failing and Store.failures:
                Store.failures -= 1
                raise Store.failing
            Store.left -= 1
            if Store.left == -1 and Store.answered:
                action()
            if Store.left < 0:
                raise Killed
            return action()

    def pipe_file(self, path, value, mode="overwrite", **given):
        return self._count(lambda: MemoryFileSystem.pipe_file(self, path, value, mode=mode, **given))

    def rm_file(self, path):
        return self._count(lambda: MemoryFileSystem.rm_file(self, path))


@pytest.fixture(autouse=True)
def store(monkeypatch, tmp_path):
    """An empty store below fake://, and a cache folder of this test alone."""
    fsspec.register_implementation("fake", Store, clobber=True)
    monkeypatch.setitem(bucket.SCHEMES, "fake", "fake")
    monkeypatch.setattr(bucket, "PATIENCE", (0.0, 0.0))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, value in (("left", 10**9), ("answered", False), ("failing", None), ("failures", 0)):
        monkeypatch.setattr(Store, name, value)
    monkeypatch.setattr(Store, "store", {})
    monkeypatch.setattr(Store, "pseudo_dirs", [""])
    return Store


ADDRESS = "fake://mine/run"
FIRST = {
    "pool/index.json": b"1",
    "pool/pretrained/arrays/float32/.zarray": b"{}",
    "pool/tasks/a@1/own/leaves.json": b"a",
    "saves/a/cwps/10/arrays/d": b"point",
    "metrics.jsonl": b"one\n",
}
SECOND = {
    **{name: FIRST[name] for name in FIRST if not name.startswith("saves")},
    "pool/index.json": b"2",
    "pool/tasks/a@1/own/leaves.json": b"another, by a name that was free again",
    "pool/tasks/b@1/own/leaves.json": b"b",
    "pool/tasks/b@1/rows/leaves.json": b"b",
    "metrics.jsonl": b"one\ntwo\n",
    "report/table.md": b"|",
}
HALVES = {
    "pool/.lock": b"1",
    "pool/tasks/.partial-1/new/leaves.json": b"",
    "saves/a/cwps/20.orbax-checkpoint-tmp/arrays/d": b"",
}


def write(folder: pathlib.Path, files: dict[str, bytes]) -> None:
    """Makes a folder have these files; what it has already is not touched, nor is what begins with a dot."""
    for name in read(folder).keys() - files.keys():
        (folder / name).unlink()
    for name, content in files.items():
        if read(folder).get(name) != content:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)


def read(folder: pathlib.Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".bucket.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def writer(folder: pathlib.Path, address: str = ADDRESS) -> Mirror:
    mirror = Mirror(address, folder)
    mirror.claim()
    return mirror


def copied(folder: pathlib.Path, address: str = ADDRESS) -> dict[str, bytes]:
    """Returns what another machine finds in the bucket."""
    Mirror(address, folder).pull()
    return read(folder)


def unnamed() -> set[str]:
    """Returns the objects that the newest commit does not name, and the commits beside it."""
    names = Bucket(ADDRESS).names("commits") + Bucket(ADDRESS).names("objects")
    newest = json.loads(Bucket(ADDRESS).get(max(name for name in names if name.startswith("commits"))))
    return (
        {*names} - {name for name, _ in newest["files"].values()} - {f"commits/{newest['number']:08d}.json"}
    )


def test_what_is_whole_comes_back_on_another_machine_and_halves_do_not(tmp_path):
    mirror = writer(tmp_path / "here")
    write(tmp_path / "here", {**FIRST, **HALVES})
    mirror.push()
    assert copied(tmp_path / "there") == FIRST and not unnamed()
    write(tmp_path / "here", {**SECOND, **HALVES})
    mirror.push()
    assert copied(tmp_path / "there") == SECOND and not unnamed()
    assert not (tmp_path / "there" / "saves").exists()  # Orbax would take an empty folder for a point
    shown = Bucket(ADDRESS)
    assert (shown.get("metrics.jsonl"), shown.get("report/table.md")) == (b"one\ntwo\n", b"|")


def test_nothing_is_sent_where_nothing_has_changed(tmp_path, store):
    mirror = writer(tmp_path / "here")
    write(tmp_path / "here", FIRST)
    mirror.push()
    store.left = 0
    mirror.push()


@pytest.mark.parametrize("answered", [False, True])
def test_whoever_dies_at_any_request_leaves_the_old_copy_or_the_new_one(tmp_path, store, answered):
    """And the next writer goes on from it, and leaves nothing behind that no commit names."""
    found, dead = [], 0
    while len(found) == dead:
        store.store.clear()
        folder = tmp_path / str(dead)
        mirror = writer(folder / "here")
        write(folder / "here", FIRST)
        mirror.push()
        write(folder / "here", SECOND)
        store.left, store.answered = dead, answered
        dead += 1
        try:
            mirror.push()
        except Killed:
            store.left = 10**9
            found.append(copied(folder / "there"))
            assert found[-1] in (FIRST, SECOND)
        else:
            break
        again = writer(folder / "fresh")
        assert read(folder / "fresh") == found[-1] and not unnamed()
        write(folder / "fresh", SECOND)
        again.push()
        assert copied(folder / "there") == SECOND and not unnamed()
        # The machine that died comes back later: the bucket is right.
        again = writer(folder / "here")
        assert read(folder / "here") == SECOND
    assert FIRST in found and SECOND in found and dead > 8


def test_whoever_dies_while_it_claims_has_lost_nothing(tmp_path, store):
    for dead in range(20):
        store.store.clear()
        folder = tmp_path / str(dead)
        mirror = writer(folder / "here")
        write(folder / "here", FIRST)
        mirror.push()
        Bucket(ADDRESS).put("objects/00000001/left", b"of a writer that died")
        store.left = dead
        try:
            writer(folder / "next")
        except Killed:
            store.left = 10**9
            assert copied(folder / "there") == FIRST
            writer(folder / "there")
            assert not unnamed()
        else:
            assert dead > 1 and not unnamed()
            return
    pytest.fail("a claim takes as many requests?")


def test_what_is_here_and_not_yet_there_is_not_lost(tmp_path, store):
    mirror = writer(tmp_path / "here")
    write(tmp_path / "here", FIRST)
    mirror.push()
    write(tmp_path / "here", SECOND)  # and the process dies
    again = writer(tmp_path / "here")
    assert read(tmp_path / "here") == SECOND
    again.push()
    assert copied(tmp_path / "there") == SECOND


def test_a_copy_that_others_have_gone_on_from_is_replaced(tmp_path):
    mirror = writer(tmp_path / "here")
    write(tmp_path / "here", FIRST)
    mirror.push()
    write(tmp_path / "here", {**FIRST, "pool/tasks/c@1/own": b"not sent"})
    other = writer(tmp_path / "other")
    write(tmp_path / "other", SECOND)
    other.push()
    with pytest.raises(CwpsError, match="another process writes there since this one began"):
        mirror.push()
    assert copied(tmp_path / "there") == SECOND
    writer(tmp_path / "here")
    assert read(tmp_path / "here") == SECOND


def test_a_writer_that_slept_while_another_one_wrote_and_cleaned_up_is_refused(tmp_path):
    """The number that it would use next is free again by then."""
    mirror = writer(tmp_path / "here")
    other = writer(tmp_path / "other")
    for files in (FIRST, SECOND):
        write(tmp_path / "other", files)
        other.push()
    write(tmp_path / "here", {"pool/index.json": b"3"})
    with pytest.raises(CwpsError, match="another process writes there"):
        mirror.push()
    assert copied(tmp_path / "there") == SECOND
    writer(tmp_path / "next")
    assert not unnamed()


def test_an_answer_that_was_lost_is_no_other_writer(tmp_path, store, monkeypatch):
    mirror = writer(tmp_path / "here")
    write(tmp_path / "here", FIRST)
    create, lost = store.pipe_file, []

    def deaf(self, path, value, mode="overwrite", **given):
        done = create(self, path, value, mode, **given)
        if mode == "create" and not lost:
            lost.append(path)
            raise TimeoutError("no answer")
        return done

    monkeypatch.setattr(store, "pipe_file", deaf)
    mirror.push()
    assert lost and copied(tmp_path / "there") == FIRST and not unnamed()


def test_a_short_fault_of_the_store_is_waited_for_and_a_long_one_told(tmp_path, store):
    mirror = writer(tmp_path / "here")
    write(tmp_path / "here", {"pool/index.json": b"1"})
    store.failing, store.failures = OSError("the network is away"), 2
    mirror.push()
    assert copied(tmp_path / "there") == {"pool/index.json": b"1"}
    write(tmp_path / "here", {"pool/index.json": b"2"})
    store.failing, store.failures = PermissionError("Access Denied"), 1  # nothing is worth waiting for
    with pytest.raises(
        CwpsError, match=r"\(PermissionError: Access Denied\); look at its name, your credentials"
    ):
        mirror.push()
    store.failing, store.failures = OSError("the network is away"), 99
    with pytest.raises(
        CwpsError, match=r"fake://mine/run: cannot be written \(OSError: the network is away\)"
    ):
        mirror.push()
    mirror.push_soon()  # in its own thread: told at the next call
    with pytest.raises(CwpsError, match="the network is away"):
        mirror.push()
    store.failures = 0
    mirror.push_soon()
    mirror.push()
    assert copied(tmp_path / "there") == {"pool/index.json": b"2"}


def test_damage_in_a_bucket_is_told_and_nothing_leads_out_of_the_folder(tmp_path):
    mirror = writer(tmp_path / "here")
    write(tmp_path / "here", FIRST)
    mirror.push()
    there = Bucket(ADDRESS)
    name = there.names("objects")[0]
    content = there.get(name)
    there.put(name, b"flipped")
    with pytest.raises(CwpsError, match=f"{name}: damaged; restore it from a copy"):
        copied(tmp_path / "there")
    there.remove(name)
    with pytest.raises(CwpsError, match=f"{name}: missing; restore it from a copy"):
        copied(tmp_path / "there")
    there.put(name, content)
    assert copied(tmp_path / "there") == FIRST
    commit = there.names("commits")[0]
    there.put(commit, there.get(commit).replace(b"pool/index.json", b"../../index.json"))
    with pytest.raises(CwpsError, match="would lead out of the folder"):
        copied(tmp_path / "there")
    there.put(commit, b"{")
    with pytest.raises(CwpsError, match="not written by cwps_jax, or damaged"):
        copied(tmp_path / "there")


@pytest.fixture
def pool(tmp_path, tiny_variables, tiny_layout):
    """A pool in the workdir of a run that writes to the bucket."""
    with opened_workdir(ADDRESS) as workdir:
        yield cwps.Pool.create(workdir / "pool", tiny_variables, tiny_layout, backbone="tiny")


def test_a_pool_is_in_the_bucket_as_soon_as_a_task_is_stored(pool, tiny_variables, moved):
    read_one = cwps.Pool.open(f"{ADDRESS}/pool")
    assert read_one.tasks == ()
    with pool.learning("a"):
        add_task(pool, "a", tiny_variables, moved, 1)
    assert read_one.tasks == ()
    read_one.refresh()
    assert read_one.tasks == ("a",) and read_one.verify() == []
    add_task(pool, "b", tiny_variables, moved, 2)
    assert cwps.Pool.open(read_one.folder).tasks == ("a", "b")  # by its folder here: it is asked again


def test_a_pool_in_a_bucket_is_only_read(pool, tiny_variables, moved, capsys):
    pool_command(["list", f"{ADDRESS}/pool"])
    assert "0 tasks on tiny" in capsys.readouterr().out
    read_one = cwps.Pool.open(f"{ADDRESS}/pool/")
    refused = "fake://mine/run/pool: a pool in a bucket is only read here"
    for change in (
        lambda: add_task(read_one, "a", tiny_variables, moved, 1),
        lambda: read_one.compact(),
        lambda: read_one.learning("a").__enter__(),
    ):
        with pytest.raises(CwpsError, match=refused):
            change()
    for address in ("fake://mine/run/pools", "fake://mine/runs/pool", "fake://other/run"):
        with pytest.raises(CwpsError, match=f"{address}.*no pool here"):
            cwps.Pool.open(address)


def test_two_runs_of_one_bucket_on_one_machine_do_not_meet(pool):
    with pytest.raises(CwpsError, match="fake://mine/run is being run by process"), opened_workdir(ADDRESS):
        pytest.fail("both run")


def test_a_run_on_another_machine_ends_the_first_at_its_next_task(
    tiny_variables, tiny_layout, moved, monkeypatch, tmp_path
):
    with (
        pytest.raises(CwpsError, match="another process writes there"),
        opened_workdir(ADDRESS) as here,
    ):
        pool = cwps.Pool.create(here / "pool", tiny_variables, tiny_layout, backbone="tiny")
        carrier = distributed._carrier
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
        with opened_workdir(ADDRESS) as there:
            add_task(cwps.Pool.open(there / "pool"), "b", tiny_variables, moved, 2)
        monkeypatch.setattr(distributed, "_carrier", carrier)
        add_task(pool, "c", tiny_variables, moved, 3)
    assert cwps.Pool.open(f"{ADDRESS}/pool").tasks == ("b",)


def test_runs_with_a_folder_each_become_one_pool_by_merging(tiny_variables, tiny_layout, moved, tmp_path):
    for number, task in enumerate(("a", "b")):
        with opened_workdir(f"fake://mine/{task}") as workdir:
            pool = cwps.Pool.create(workdir / "pool", tiny_variables, tiny_layout, backbone="tiny")
            add_task(pool, task, tiny_variables, moved, 1 + number)
    pool = cwps.Pool.create(tmp_path / "pool", tiny_variables, tiny_layout, backbone="tiny")
    for task in ("a", "b"):
        pool_command(["merge", str(pool.folder), f"fake://mine/{task}/pool"])
    assert cwps.Pool.open(pool.folder).tasks == ("a", "b") and pool.verify() == []
    with pytest.raises(CwpsError, match="a pool in a bucket is only read here"):
        cwps.Pool.open("fake://mine/a/pool").merge(pool)


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("ftp://mine/run", "not an address of a bucket; give gs://BUCKET/FOLDER or s3://BUCKET/FOLDER"),
        ("s3://", "not an address of a bucket"),
        ("gs://mine/run", r"the library for gs:// is not installed: pip install 'cwps_jax\[gcs\]'"),
    ],
)
def test_an_address_that_cannot_work_is_refused_in_one_line(address, told, monkeypatch):
    if address.startswith("gs"):
        monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(CwpsError, match=told):
        Bucket(address)


def test_no_folder_here_is_that_of_another_address():
    addresses = ("gs://a/run", "s3://a/run", "gs://b/run", "gs://a/run/run", "gs://a/run/..")
    folders = {local_folder(address, "run") for address in addresses}
    assert len(folders) == len(addresses) and len({folder.parent for folder in folders}) == 1
    assert local_folder("gs://a/run/", "run") in folders
