"""The cache of decoded images: what comes out is what went in, whatever happened in between."""

import hashlib
import logging
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from cwps_jax.data import cache as cache_module
from cwps_jax.data.cache import SUFFIX, DiskCache, PixelCache, open_cache
from cwps_jax.errors import CwpsError

PLENTY = 1 << 40


def key_of(number):
    return hashlib.sha256(b"%d" % number).digest()


def image_of(number):
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (*rng.integers(1, 40, 2), 3), np.uint8)


def fill(cache, numbers):
    for number in numbers:
        cache.put(key_of(number), image_of(number))


def kept(cache, numbers):
    """Returns which of the images the cache gives out, after a look that they are what was put."""
    found = []
    for number in numbers:
        pixels = cache.get(key_of(number))
        if pixels is not None:
            np.testing.assert_array_equal(pixels, image_of(number))
            found.append(number)
    return found


def size_of(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.fixture(params=["memory", "disk"])
def kind(request):
    return request.param


def test_what_comes_out_is_what_went_in(kind, tmp_path):
    cache = open_cache(kind, tmp_path / "new" / "folder", PLENTY)
    assert kept(cache, range(20)) == []
    fill(cache, range(20))
    assert kept(cache, range(40)) == list(range(20))
    assert cache.bytes_held == sum(image_of(number).nbytes for number in range(20))
    if kind == "disk":
        cache.clear()
        assert kept(cache, range(40)) == list(range(20))
        assert cache.bytes_held == size_of(tmp_path / "new" / "folder")


def test_no_cache():
    assert open_cache("none", "", PLENTY) is None


def test_nobody_can_change_what_is_cached(kind, tmp_path):
    cache = open_cache(kind, tmp_path, PLENTY)
    given = image_of(0)
    cache.put(key_of(0), given)
    given[:] = 0
    with pytest.raises(ValueError, match="read-only"):
        cache.get(key_of(0))[:] = 0
    assert kept(cache, [0]) == [0]


def test_pixels_of_any_layout(kind, tmp_path):
    cache = open_cache(kind, tmp_path, PLENTY)
    for number, change in enumerate([np.fliplr, np.flipud, lambda image: image.swapaxes(0, 1)]):
        cache.put(key_of(number), change(image_of(number)))
        np.testing.assert_array_equal(cache.get(key_of(number)), change(image_of(number)))


@pytest.mark.parametrize(
    ("key", "pixels"),
    [
        (b"short", image_of(0)),
        (key_of(0) * 2, image_of(0)),
        (key_of(0), image_of(0).astype(np.float32)),
        (key_of(0), image_of(0)[..., :1]),
        (key_of(0), image_of(0)[0]),
        (key_of(0), image_of(0)[:0]),
    ],
)
def test_what_is_not_an_image_is_refused(kind, tmp_path, key, pixels):
    with pytest.raises(ValueError, match="must be"):
        open_cache(kind, tmp_path, PLENTY).put(key, pixels)


def test_the_limit_keeps_the_first_images_and_says_so_once(kind, tmp_path, caplog):
    cache = open_cache(kind, tmp_path, 7 * 300 + 299)
    with caplog.at_level(logging.INFO, logger="absl"):
        for number in range(20):
            cache.put(key_of(number), np.full((10, 10, 3), number, np.uint8))
    assert [cache.get(key_of(number)) is not None for number in range(20)] == [True] * 7 + [False] * 13
    assert cache.bytes_held == 7 * 300
    assert [record.message for record in caplog.records if "is full" in record.message] == [
        f"the image cache ({'memory' if kind == 'memory' else tmp_path}) is full with 0.00 GB "
        "(config.cache_gigabytes): images that are not in it are decoded in every epoch"
    ]
    if kind == "disk":
        cache.clear()
        again = DiskCache(tmp_path, 7 * 300 + 299)
        again.put(key_of(30), np.zeros((10, 10, 3), np.uint8))
        assert again.get(key_of(30)) is None and again.get(key_of(6)) is not None


def test_threads_that_put_and_get_the_same_images(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "FILE_BYTES", 9000)
    monkeypatch.setattr(cache_module, "MOST_FILES", PLENTY)
    cache = open_cache(kind, tmp_path, PLENTY)
    begin, numbers, wrong = threading.Barrier(8), range(60), []

    def work(seed):
        begin.wait()
        try:
            for number in np.random.default_rng(seed).permutation(numbers):
                kept(cache, [number])
                fill(cache, [number])
                assert kept(cache, [number])
        except AssertionError as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert kept(cache, numbers) == list(numbers)
    if kind == "disk":
        assert 5 < len(list(tmp_path.iterdir())) < 30
        cache.clear()
        assert kept(cache, numbers) == list(numbers)


def test_images_on_disk_outlive_the_process(tmp_path):
    first = DiskCache(tmp_path, PLENTY)
    fill(first, range(10))
    assert not list(tmp_path.iterdir())  # they are written together
    first.clear()
    second = DiskCache(tmp_path, PLENTY)
    fill(second, range(5, 15))
    second.clear()
    assert kept(second, range(15)) == list(range(15))
    assert kept(DiskCache(tmp_path, PLENTY), range(15)) == list(range(15))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.fixture
def file(tmp_path):
    cache = DiskCache(tmp_path, PLENTY)
    fill(cache, range(20))
    cache.clear()
    (file,) = tmp_path.iterdir()
    return file


def test_a_file_that_was_cut_off_or_zeroed_is_a_miss_and_never_a_wrong_image(tmp_path, file, caplog):
    whole = file.read_bytes()
    sizes = np.random.default_rng(0).integers(0, len(whole), 20).tolist()
    for content in (b"", bytes(len(whole)), *(whole[:size] for size in sizes)):
        file.write_bytes(content)
        cache = DiskCache(tmp_path, PLENTY)
        kept(cache, range(20))
        fill(cache, range(20))
        assert kept(cache, range(20)) == list(range(20))
    assert "its cached images are lost" in caplog.text


def test_a_flipped_bit_is_a_miss_and_never_a_wrong_image(tmp_path, file):
    rng = np.random.default_rng(0)
    whole, left = file.read_bytes(), []
    for _ in range(60):
        content = bytearray(whole)
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        file.write_bytes(content)
        cache = DiskCache(tmp_path, PLENTY)
        left.append(len(kept(cache, range(20))))
        fill(cache, range(20))
        assert kept(cache, range(20)) == list(range(20))
    assert left.count(19) > 5 and {*left} <= {0, 19, 20}


def test_foreign_files_are_left_alone(tmp_path, file):
    writer = ArrayRecordWriter(str(tmp_path / ("other" + SUFFIX)), "group_size:1")
    for record in (b"one", b"two"):
        writer.write(record)
    writer.close()
    (tmp_path / "notes.txt").write_bytes(b"notes")
    (tmp_path / ("x" + SUFFIX)).write_bytes(bytes(5000))
    foreign = {path: path.read_bytes() for path in tmp_path.iterdir()}
    cache = DiskCache(tmp_path, PLENTY)
    fill(cache, range(20, 25))
    cache.clear()
    assert kept(cache, range(25)) == list(range(25))
    assert {path: path.read_bytes() for path in foreign} == foreign


def test_a_folder_deleted_while_in_use_ends_the_caching_and_nothing_else(tmp_path, file, caplog):
    cache = DiskCache(tmp_path, PLENTY)
    file.unlink()
    tmp_path.rmdir()
    for number in (30, 31):
        fill(cache, [number])
        cache.clear()
    assert kept(cache, range(20, 40)) == []
    assert [record.message.split(": ")[0] for record in caplog.records] == ["no more images are cached"]


@pytest.mark.parametrize("kind_of_place", ["below a file", "in the kernel"])
def test_a_folder_that_cannot_be_used_is_refused(tmp_path, kind_of_place):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "cache" if kind_of_place == "below a file" else "/proc/self"
    if not os.path.isdir("/proc/self") and kind_of_place == "in the kernel":
        pytest.skip("no folder that even root cannot write to")
    with pytest.raises(CwpsError, match="images cannot be cached here .*config.cache_dir") as error:
        DiskCache(folder, PLENTY)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def run(program, folder):
    """Runs a program in a process of its own, with this file's names; returns what it wrote to stderr."""
    lines = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); from test_cache import *\n"
    command = [sys.executable, "-W", "ignore", "-c", lines + program, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stderr


KILLED = """
import itertools, pathlib, random, signal, time
folder = pathlib.Path(sys.argv[1])
random.seed(0)
cache_module.FILE_BYTES, cache_module.MOST_FILES = 3_000_000, PLENTY
for life in range(25):
    child = os.fork()
    if not child:
        cache = DiskCache(folder, PLENTY)
        for number in itertools.count(random.randrange(100)):
            cache.put(key_of(number), np.resize(image_of(number), (400, 400, 3)))
    time.sleep(random.uniform(0.05, 0.2))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def test_a_process_killed_at_any_moment_leaves_no_wrong_pixels(tmp_path):
    run(KILLED, tmp_path)
    cache = DiskCache(tmp_path, PLENTY)
    found = 0
    for number in range(1000):
        pixels = cache.get(key_of(number))
        if pixels is not None:
            np.testing.assert_array_equal(pixels, np.resize(image_of(number), (400, 400, 3)))
            found += 1
    assert found == len(cache._places) > 5


AT_ONCE = """
cache_module.FILE_BYTES, cache_module.MOST_FILES = 10_000, PLENTY
for _ in range(2):
    if not os.fork():
        cache = DiskCache(sys.argv[1], LIMIT)
        for number in range(300):
            cache.put(key_of(number), image_of(number))
        cache.clear()
        found = kept(cache, range(300))
        os._exit(0 if found == sorted(found) and len(found) > 20 else 1)
sys.exit(os.wait()[1] | os.wait()[1])
"""


@pytest.mark.parametrize("limit", [PLENTY, 3_000_000])
def test_two_processes_at_once(tmp_path, limit):
    run(AT_ONCE.replace("LIMIT", str(limit)), tmp_path)
    found = kept(DiskCache(tmp_path, limit), range(300))
    assert found == list(range(300)) if limit == PLENTY else len(found) > 20


FULL = """
import resource, signal
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
cache = DiskCache(sys.argv[1], PLENTY)
fill(cache, range(100))
cache.clear()
fill(cache, range(100))
assert kept(cache, range(100)) == []
"""


def test_a_full_disk_ends_the_caching_and_nothing_else(tmp_path):
    written = run(FULL, tmp_path)
    assert written.count("no more images are cached") == 1
    assert not list(tmp_path.iterdir())
    assert PixelCache(PLENTY).get(key_of(0)) is None
