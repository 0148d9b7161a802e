"""A small task learned from a folder of pictures, with what it was learned with in its record."""

import json
import pathlib

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

import cwps_jax as cwps
from cwps_jax import data, models
from cwps_jax.learn import make_trainer
from cwps_jax.settings import DataConfig

CLASSES = ("one [b]", "two", "zéro")  # digits 1, 2, 0: names sort in another order than the digits
DIGITS = (1, 2, 0)
CONFIG = cwps.TrainConfig(epochs=4, batch_size=16, learning_rate=0.05, budget=0.5, norm_batches=2)


def draw_pictures(folder: pathlib.Path, test: int = 12) -> None:
    """Writes <task>/<split>/<class>/<file> of two tasks; the test split has odd photographs too."""
    scans, labels = load_digits(return_X_y=True)
    scans = (scans.reshape(-1, 8, 8) * 15.9).astype(np.uint8)
    for (name, digit), task in ((pair, task) for pair in zip(CLASSES, DIGITS, strict=True) for task in TASKS):
        pixels = scans[labels == digit]
        pixels = 255 - pixels if task == "negative" else pixels
        for number, scan in enumerate(pixels[: 40 + test]):
            file = folder / task / ("train" if number < 40 else "test") / name / f"{number:03}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(scan).resize((16, 14)).save(file)
        odd_photographs(folder / task / "test" / name, Image.fromarray(pixels[-1]).resize((40, 32)))


def odd_photographs(folder: pathlib.Path, picture: Image.Image) -> None:
    """Writes a photograph that its EXIF turns, one in CMYK, and one with alpha."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.convert("RGB").save(folder / "turned.jpg", exif=exif)
    picture.convert("RGB").convert("CMYK").save(folder / "cmyk.jpg")
    clear = picture.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(picture.size))
    clear.save(folder / "alpha.png")


TASKS = ("digits", "negative")


def settings(folder: pathlib.Path) -> DataConfig:
    return DataConfig(data="folders", data_dir=str(folder), image_size=12, resize=13, cache_dir="")


def make_pool(folder: pathlib.Path) -> cwps.Pool:
    """Returns a pool with both tasks, and one as an earlier release stored it, of a few epochs each."""
    draw_pictures(folder / "DATA")
    images = settings(folder / "DATA")
    model, variables = cwps.load_backbone("resnet8", num_classes=3, image_size=12)
    tasks = {name: data.load(images, name) for name in TASKS}
    trainer = make_trainer(model, tasks["digits"], config=CONFIG)
    pool = cwps.Pool.create(folder / "pool", variables, trainer.layout, backbone="resnet8")
    for name, task in {**tasks, "earlier": tasks["digits"]}.items():
        cwps.learn_task(pool, name, models.create("resnet8", 3), task, config=CONFIG, trainer=trainer)
    index = folder / "pool" / "index.json"
    values = json.loads(index.read_text())
    del values["versions"][-1]["record"]["learned_with"]  # as earlier releases stored it
    index.write_text(json.dumps(values))
    return cwps.Pool.open(folder / "pool")
