"""The cache of decoded images: what comes out is what went in, whatever happened in between."""

import hashlib
import logging
import os
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest

from cwps_jax.data.cache import INDEX, PIXELS, RECORD, DiskCache, MemoryCache, open_cache
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
    assert (cache.hits, cache.misses) == (20, 40)
    pixels = sum(image_of(number).nbytes for number in range(20))
    assert cache.bytes_held == pixels + (20 * RECORD.size if kind == "disk" else 0)


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
    size = 300 + (RECORD.size if kind == "disk" else 0)
    cache = open_cache(kind, tmp_path, 7 * size + 299)
    with caplog.at_level(logging.INFO, logger="absl"):
        for number in range(20):
            cache.put(key_of(number), np.full((10, 10, 3), number, np.uint8))
    assert [cache.get(key_of(number)) is not None for number in range(20)] == [True] * 7 + [False] * 13
    assert cache.bytes_held == 7 * size
    assert [record.message for record in caplog.records if "is full" in record.message] == [
        f"the image cache ({'memory' if kind == 'memory' else tmp_path}) is full with 0.00 GB "
        "(config.cache_gigabytes): what is not in it is decoded in every epoch"
    ]
    if kind == "disk":
        assert size_of(tmp_path) == 7 * size
        again = DiskCache(tmp_path, 7 * size + 299)
        again.put(key_of(30), np.zeros((10, 10, 3), np.uint8))
        assert again.get(key_of(30)) is None and again.get(key_of(6)) is not None


def test_threads_that_put_and_get_the_same_images(kind, tmp_path):
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
    assert cache.hits + cache.misses == 8 * 2 * 60 + 60
    pixels = sum(image_of(number).nbytes for number in numbers)
    assert cache.bytes_held == pixels + (60 * RECORD.size if kind == "disk" else 0)
    if kind == "disk":
        assert size_of(tmp_path) == cache.bytes_held


def test_images_on_disk_outlive_the_process(tmp_path):
    fill(DiskCache(tmp_path, PLENTY), range(10))
    second = DiskCache(tmp_path, PLENTY)
    fill(second, range(5, 15))
    assert kept(second, range(15)) == list(range(15))
    assert kept(DiskCache(tmp_path, PLENTY), range(15)) == list(range(15))
    # Two files, though of one process: on two machines two processes may have the same number.
    assert len(list(tmp_path.glob(f"*{PIXELS}"))) == 2
    assert size_of(tmp_path) == sum(image_of(number).nbytes + RECORD.size for number in range(15))


@pytest.fixture
def files(tmp_path):
    fill(DiskCache(tmp_path, PLENTY), range(20))
    (pixels,), (index,) = tmp_path.glob(f"*{PIXELS}"), tmp_path.glob(f"*{INDEX}")
    return pixels, index


def test_files_cut_off_anywhere_lose_their_end_alone(tmp_path, files, caplog):
    pixels, index = files
    whole = pixels.read_bytes(), index.read_bytes()
    ends = np.cumsum([image_of(number).nbytes for number in range(20)])
    rng = np.random.default_rng(0)
    for _ in range(50):
        cuts = rng.integers(0, len(whole[0])), rng.integers(0, len(whole[1]))
        pixels.write_bytes(whole[0][: cuts[0]])
        index.write_bytes(whole[1][: cuts[1]])
        left = min(np.searchsorted(ends, cuts[0], side="right"), cuts[1] // RECORD.size)
        cache = DiskCache(tmp_path, PLENTY)
        assert kept(cache, range(20)) == list(range(left))
        fill(cache, range(20))
        assert kept(cache, range(20)) == list(range(20))
        for path in set(tmp_path.iterdir()) - set(files):
            path.unlink()
    assert "cut off or damaged" in caplog.text


def test_a_flipped_bit_loses_one_image(tmp_path, files, caplog):
    rng = np.random.default_rng(0)
    for _ in range(60):
        for path in files:
            content = bytearray(whole := path.read_bytes())
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
            path.write_bytes(content)
            assert len(kept(DiskCache(tmp_path, PLENTY), range(20))) == 19
            path.write_bytes(whole)
    assert "cut off or changed" in caplog.text


def test_a_damaged_image_is_put_anew(tmp_path, files):
    files[0].write_bytes(bytes(files[0].stat().st_size))
    cache = DiskCache(tmp_path, PLENTY)
    assert kept(cache, range(20)) == []
    fill(cache, range(20))
    assert kept(cache, range(20)) == list(range(20))


def test_zeros_are_no_images(tmp_path, files):
    # What a file system may leave of the last pages after a crash of the machine.
    for path in files:
        path.write_bytes(bytes(path.stat().st_size))
    cache = DiskCache(tmp_path, PLENTY)
    assert cache.get(bytes(32)) is None
    assert kept(cache, range(20)) == []


def test_records_that_belong_to_other_pixels_are_misses(tmp_path, files):
    # Keys in reverse, heights and widths exchanged, no height: each fits the file of pixels.
    records = list(RECORD.iter_unpack(files[1].read_bytes()))
    keys = [key for key, _, _ in reversed(records)]
    places = [struct.unpack("<QII", place) for _, place, _ in records]
    for wrong in (
        [(key, place, checksum) for key, (_, place, checksum) in zip(keys, records, strict=True)],
        [
            (key, struct.pack("<QII", offset, width, height), checksum)
            for (key, _, checksum), (offset, height, width) in zip(records, places, strict=True)
            if height != width
        ],
        [
            (key, struct.pack("<QII", offset, 0, 2**32 - 1), 0)
            for (key, _, _), (offset, _, _) in zip(records, places, strict=True)
        ],
    ):
        files[1].write_bytes(b"".join(RECORD.pack(*record) for record in wrong))
        cache = DiskCache(tmp_path, PLENTY)
        assert len(wrong) > 15
        assert [cache.get(key_of(number)) for number in range(20)] == [None] * 20


def test_foreign_files_are_left_alone(tmp_path, files):
    rng = np.random.default_rng(0)
    foreign = {
        "x" + INDEX: 1000,
        "x" + PIXELS: 5000,
        "alone" + INDEX: 520,
        "notes.txt": 9,
        "empty" + INDEX: 0,
    }
    content = {name: rng.bytes(size) for name, size in foreign.items()}
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    cache = DiskCache(tmp_path, PLENTY)
    fill(cache, range(20, 25))
    assert kept(cache, range(25)) == list(range(25))
    assert {name: (tmp_path / name).read_bytes() for name in content} == content


def test_a_folder_deleted_while_in_use_is_a_miss(tmp_path, files, caplog):
    cache = DiskCache(tmp_path, PLENTY)
    for path in files:
        path.unlink()
    tmp_path.rmdir()
    assert kept(cache, range(20)) == []
    fill(cache, range(20))
    assert kept(cache, range(20)) == []
    assert [record.message for record in caplog.records if "no more" in record.message] == [
        f"no more images are cached: {tmp_path}: No such file or directory"
    ]


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
cache = DiskCache(folder, PLENTY)
for life in range(25):
    child = os.fork()  # opened before: each child has to write to a file of its own
    if not child:
        for number in itertools.count(random.randrange(100)):
            pixels = np.resize(image_of(number), (400, 400, 3))
            cache.put(key_of(number), pixels)
    while not (folder / f"{cache._token}-{child}{PIXELS}").exists():
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def test_a_process_killed_at_any_moment_leaves_no_wrong_pixels(tmp_path):
    run(KILLED, tmp_path)
    assert len(list(tmp_path.glob(f"*{PIXELS}"))) == 25
    cache = DiskCache(tmp_path, PLENTY)
    found = 0
    for number in range(1000):
        pixels = cache.get(key_of(number))
        if pixels is not None:
            np.testing.assert_array_equal(pixels, np.resize(image_of(number), (400, 400, 3)))
            found += 1
    indexed = sum(path.stat().st_size // RECORD.size for path in tmp_path.glob(f"*{INDEX}"))
    assert found == len(cache._entries) > 50
    assert indexed >= found


AT_ONCE = """
for _ in range(2):
    if not os.fork():
        cache = DiskCache(sys.argv[1], LIMIT)
        for number in range(300):
            cache.put(key_of(number), image_of(number))
        found = kept(cache, range(300))
        os._exit(0 if found == sorted(found) and len(found) > 20 else 1)
sys.exit(os.wait()[1] | os.wait()[1])
"""


@pytest.mark.parametrize("limit", [PLENTY, 200_000])
def test_two_processes_at_once(tmp_path, limit):
    run(AT_ONCE.replace("LIMIT", str(limit)), tmp_path)
    assert len(list(tmp_path.glob(f"*{PIXELS}"))) == 2
    found = kept(DiskCache(tmp_path, limit), range(300))
    if limit == PLENTY:
        assert found == list(range(300))
    else:
        largest = 40 * 40 * 3 + RECORD.size
        assert limit - largest < size_of(tmp_path) <= limit + 2 * largest
        assert found


FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
cache = DiskCache(sys.argv[1], PLENTY)
fill(cache, range(40))
found = kept(cache, range(40))
assert found == list(range(len(found))) and 2 < len(found) < 40, found
"""


def test_a_full_disk_ends_the_caching_and_nothing_else(tmp_path):
    written = run(FULL, tmp_path)
    assert written.count("no more images are cached") == 1
    assert 10_000 < size_of(tmp_path) <= 20_000 + 40 * RECORD.size
    assert len(kept(DiskCache(tmp_path, PLENTY), range(40))) > 2
    assert MemoryCache(PLENTY).get(key_of(0)) is None
