"""Input pipeline: images a second against the bare decoder, and what the loader costs a training step.

    python benchmarks/input.py --out benchmarks/results/input_cpu.json
    python benchmarks/input.py --data_dir DATA/photo/train --cache_dir /scratch     (your own images and disk)

Images are JPEG of 500 x 375 pixels and 110 kB, as ImageNet's are on average, cut from the two photos that
scikit-learn ships. The bare decoder is Pillow to an RGB array and nothing else, of the same images, in as
many threads. All turns are interleaved in one process, so that a machine whose speed drifts is fair to all;
ratios are medians turn by turn. From the cache a random crop is a copy of pixels, but a random resized crop
has to resize.

The step is a fine-tuning step that is fed by the loader, over the same step on one batch that stays on the
device. On a CPU both share the cores: what the loader takes, the step has not.
"""

import argparse
import dataclasses
import functools
import importlib.metadata
import io
import itertools
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from measurement import interleaved, provenance
from PIL import Image
from turn import Turn

from cwps_jax.config import DataConfig
from cwps_jax.data.cache import DiskCache, PixelCache
from cwps_jax.data.pipeline import ahead, training_batches
from cwps_jax.data.preparation import Preparation
from cwps_jax.data.source import Record
from cwps_jax.data.split import ImageSplit
from cwps_jax.data.transforms import Transform

WIDTH, HEIGHT, QUALITY = 500, 375, 98
ITEMS = 1024  # of the split: more than the images, so that cached pixels do not fit a processor's own cache
CLASSES = 10
CROPS = ("random", "random_resized")
TURN_BATCHES = 8  # of each thread in a turn
SEED = 0


class Files:
    """The source: encoded images in memory, over and over."""

    name, classes, fingerprint = "benchmark", [str(label) for label in range(CLASSES)], ""

    def __init__(self, contents: Sequence[bytes]) -> None:
        self.contents = contents

    def __len__(self) -> int:
        return ITEMS

    def __getitem__(self, index: int) -> Record:
        return Record(self.contents[index % len(self.contents)], index % CLASSES)

    def describe(self, index: int) -> str:
        return f"image {index % len(self.contents)}"


def sample_images(count: int) -> list[bytes]:
    """Returns encoded parts of scikit-learn's two photos."""
    from sklearn.datasets import load_sample_images

    rng, contents = np.random.default_rng(SEED), []
    photos = load_sample_images().images
    for number in range(count):
        photo = Image.fromarray(photos[number % len(photos)])
        left, top = (int(rng.integers(0, more + 1)) for more in (photo.width - WIDTH, photo.height - HEIGHT))
        part = photo.crop((left, top, left + WIDTH, top + HEIGHT))
        with io.BytesIO() as file:
            part.save(file, "JPEG", quality=QUALITY)
            contents.append(file.getvalue())
    return contents


def own_images(folder: pathlib.Path, count: int) -> list[bytes]:
    """Returns the first images of a folder, at any depth."""
    suffixes = {".jpg", ".jpeg", ".png", ".webp"}
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    if not paths:
        raise SystemExit(f"{folder} has no images")
    return [path.read_bytes() for path in paths[:count]]


def split_of(files: Files, settings: DataConfig, threads: int, cache: PixelCache | None) -> ImageSplit:
    """Returns the source as training data."""
    return ImageSplit(
        source=files,
        items=np.arange(ITEMS),
        keys=np.random.default_rng(SEED).integers(0, 256, (ITEMS, 32), np.uint8),
        fields={"label": np.arange(ITEMS, dtype=np.int32) % CLASSES},
        transform=Transform.of(settings),
        preparation=Preparation.of(settings),
        cache=cache,
        threads=threads,
        prefetch=settings.prefetch,
    )


def rates(arguments: argparse.Namespace, files: Files, folder: pathlib.Path) -> dict[str, list[float]]:
    """Returns images a second in every turn: of the bare decoder, from files, and from each cache."""
    threads, batch = arguments.threads, arguments.batch
    count = TURN_BATCHES * threads * batch
    shares = [range(first, count, threads) for first in range(threads)]

    def bare(indices: range) -> None:
        for index in indices:
            np.asarray(Image.open(io.BytesIO(files[index].image)).convert("RGB"))

    def decode() -> int:
        list(pool.map(bare, shares))
        return count

    def load(split: ImageSplit, batches: int) -> int:
        return batch * sum(1 for _ in training_batches(split, batch, SEED, 0, batches))

    settings = DataConfig(data="folders", image_size=arguments.size, flip=True)
    # The default limit: what waits to be written is part of it, and would be read from memory.
    caches = {"files": None, "memory_cache": PixelCache(1 << 40), "disk_cache": DiskCache(folder, 4 * 10**9)}
    turns: dict[str, Callable[[], int]] = {"decoder": decode}
    for name, cache in caches.items():
        for crop in CROPS:
            split = split_of(files, dataclasses.replace(settings, crop=crop), threads, cache)
            longer = 1 if cache is None else 4  # a turn should take some tenths of a second
            turns[f"{name}_{crop}"] = functools.partial(load, split, longer * TURN_BATCHES * threads)

    def timed(turn: Callable[[], int]) -> float:
        began = time.perf_counter()
        return turn() / (time.perf_counter() - began)

    with ThreadPoolExecutor(threads) as pool:
        calls = {name: functools.partial(timed, turn) for name, turn in turns.items()}
        return interleaved(calls, arguments.repeats)


def step_seconds(arguments: argparse.Namespace, files: Files) -> dict[str, list[float]]:
    """Returns a training step's seconds in every turn: on a batch that stays, from files, from the cache."""
    turn = Turn("finetune", arguments, arguments.step_size, arguments.step_batch)
    settings = DataConfig(data="folders", image_size=arguments.step_size, crop="random_resized", flip=True)
    normalise = turn.parallel.compile(Preparation.of(settings).normalise, split_output=True)

    def batches(cache: PixelCache | None) -> Iterator[Any]:
        split = split_of(files, settings, arguments.threads, cache)
        read = training_batches(split, arguments.step_batch, SEED, 0, sys.maxsize)
        return ahead(map(turn.parallel.split, read), settings.prefetch)

    def step(stream: Iterator[Any]) -> None:
        batch = next(stream)
        ready = {**batch, "image": normalise(batch["image"])}
        turn.state, metrics = turn.step(turn.state, turn.frozen, turn.plan, ready)
        jax.block_until_ready((turn.state, metrics))

    def timed(stream: Iterator[Any]) -> float:
        step(stream)  # meanwhile the loaders fill up again, whosever turn it is
        began = time.perf_counter()
        for _ in range(arguments.steps):
            step(stream)
        return (time.perf_counter() - began) / arguments.steps

    streams = {
        "resident": itertools.repeat(next(batches(None))),
        "files": batches(None),
        "memory_cache": batches(PixelCache(1 << 40)),
    }
    turns = {name: functools.partial(timed, stream) for name, stream in streams.items()}
    return interleaved(turns, arguments.repeats)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns ratios, absolute figures, and what they were measured on."""
    contents = (
        own_images(arguments.data_dir, arguments.images)
        if arguments.data_dir
        else sample_images(arguments.images)
    )
    files = Files(contents)
    with tempfile.TemporaryDirectory(dir=arguments.cache_dir) as folder:
        speeds = rates(arguments, files, pathlib.Path(folder))
    seconds = step_seconds(arguments, files)
    ratios, quartiles = {}, {}

    def add(name: str, values: list[float], against: list[float]) -> None:
        low, ratios[name], high = statistics.quantiles(np.divide(values, against).tolist(), n=4)
        quartiles[name] = [low, high]

    for name, values in speeds.items():
        if name != "decoder":
            add(f"{name}_over_decoder", values, speeds["decoder"])
    for name, values in seconds.items():
        if name != "resident":
            add(f"step_with_{name}_over_resident", values, seconds["resident"])
    keys = ("size", "batch", "threads", "backbone", "step_size", "step_batch", "steps", "dtype", "repeats")
    packages = ("grain", "numpy", "opencv-python-headless", "pillow")
    found = provenance()
    found["versions"] |= {package: importlib.metadata.version(package) for package in packages}
    return {
        "benchmark": "input",
        "ratios": ratios,
        "quartiles": quartiles,
        "images_per_second": {name: statistics.median(values) for name, values in speeds.items()},
        "step_seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "settings": {
            **{key: getattr(arguments, key) for key in keys},
            "images": len(contents),
            "own_images": arguments.data_dir is not None,
            "mean_bytes": round(statistics.mean(map(len, contents))),
        },
        **found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data_dir", type=pathlib.Path, help="a folder of images of your own")
    parser.add_argument("--images", type=int, default=64, help="how many different ones")
    parser.add_argument("--cache_dir", type=pathlib.Path, help="where images are cached on disk")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--size", type=int, default=224, help="pixels of a crop's side")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--backbone", default="resnet18", help="of the training step")
    parser.add_argument("--step_size", type=int, default=224)
    parser.add_argument("--step_batch", type=int, default=16)
    parser.add_argument(
        "--steps", type=int, default=1, help="steps a turn; on a GPU more than are read ahead"
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="3 repeats; steps at 64 px, batch 8")
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.repeats, arguments.step_size, arguments.step_batch = 3, 64, 8
    result = measure(arguments)
    for name, value in result["images_per_second"].items():
        print(f"{name:40} {value:10.1f} images/s")
    for name, value in result["step_seconds"].items():
        print(f"{f'step_with_{name}':40} {value:10.3f} s")
    for name, value in result["ratios"].items():
        print(f"{name:40} {value:10.3f} ({'{:.3f} to {:.3f}'.format(*result['quartiles'][name])})")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
