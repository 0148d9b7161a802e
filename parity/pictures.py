"""Real images as the published weights want them, from a folder of test data that is not in the project."""

import csv
import io
import pathlib
import zipfile

import numpy as np
from PIL import Image

MEAN = np.float32([0.485, 0.456, 0.406])
DEVIATION = np.float32([0.229, 0.224, 0.225])


def cifar_test(folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns CIFAR-10 test images (n, 32, 32, 3), float32, and labels (n,), in the order of their names."""
    with zipfile.ZipFile(folder / "A3_cifar10_small.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.startswith("cifar10/test/"))
        classes = sorted({name.split("/")[2] for name in names})
        labels = np.array([classes.index(name.split("/")[2]) for name in names])
        return np.stack([_picture(archive.read(name)) for name in names]), labels


def photos(folder: pathlib.Path, side: int = 224) -> np.ndarray:
    """Returns the colour photos among the loader's samples (n, side, side, 3), float32."""
    with zipfile.ZipFile(folder / "C_loader_samples.zip") as archive:
        manifest = csv.DictReader(io.StringIO(archive.read("manifest.csv").decode()))
        names = sorted(row["path"] for row in manifest if row["path"].startswith("real/rgb/"))
        return np.stack([_picture(archive.read(name), side) for name in names])


def _picture(content: bytes, side: int | None = None) -> np.ndarray:
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    if side:
        picture = picture.resize((side, side), Image.Resampling.BILINEAR)
    return (np.asarray(picture, np.float32) / 255 - MEAN) / DEVIATION
