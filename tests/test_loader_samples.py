"""Sixty files for a loader, real and made, and a manifest of what must decode; none is in the project."""

import csv
import io
import os
import pathlib
import zipfile

import numpy as np
import pytest
from test_decode import by_pillow, decoded

from cwps_jax.config import DataConfig
from cwps_jax.data import folders
from cwps_jax.data.decode import Undecodable, open_image, to_rgb, upright_size

PATH = pathlib.Path(os.environ.get("CWPS_TEST_DATA", ""), "C_loader_samples.zip")


@pytest.fixture(scope="module")
def samples() -> tuple[zipfile.ZipFile, list[dict[str, str]]]:
    """The samples and their manifest."""
    if not PATH.is_file():
        pytest.skip("set CWPS_TEST_DATA to the folder of C_loader_samples.zip")
    archive = zipfile.ZipFile(PATH)
    return archive, list(csv.DictReader(io.TextIOWrapper(archive.open("manifest.csv"), "utf-8")))


def test_the_samples_decode_or_are_refused_as_their_manifest_says(samples):
    archive, rows = samples
    counts = {"yes": 0, "no": 0}
    for row in rows:
        content = archive.read(row["path"])
        if row["expect_decodable"] == "no":
            with pytest.raises(Undecodable):
                to_rgb(open_image(content))
        if row["expect_decodable"] == "yes":
            image = open_image(content)
            assert image.mode == row["mode"], row["path"]
            width, height = map(int, row["size"].split("x"))
            turned = row["exif_orientation"] in ("5", "6", "7", "8")
            assert upright_size(image) == ((height, width) if turned else (width, height)), row["path"]
            if row["mode"] != "I;16":
                np.testing.assert_array_equal(np.asarray(to_rgb(image)), by_pillow(content), row["path"])
        counts[row["expect_decodable"]] = counts.get(row["expect_decodable"], 0) + 1
    assert counts["yes"] >= 50 and counts["no"] == 5


def test_the_samples_of_one_photo_look_alike(samples):
    archive, _ = samples
    original = decoded(archive.read("derived/png_named.jpg")).astype(int)
    grey = decoded(archive.read("derived/la.png")).astype(int)
    for orientation in range(1, 9):
        turned = decoded(archive.read(f"derived/exif_{orientation}.jpg")).astype(int)
        assert turned.shape == original.shape and np.abs(turned - original).mean() < 4
    assert np.abs(decoded(archive.read("derived/gray16.png")).astype(int) - grey).max() <= 2
    for name in ("photo.bmp", "photo.tif", "rgba.png"):
        np.testing.assert_array_equal(decoded(archive.read(f"derived/{name}")), original)


def test_the_samples_in_a_class_folder_are_all_read_but_leftovers(samples, tmp_path):
    archive, rows = samples
    expected = {}
    for split in ("train", "test"):
        folder = tmp_path / "task" / split / "class"
        folder.mkdir(parents=True)
        for row in rows:
            name = row["path"].rpartition("/")[2]
            (folder / name).write_bytes(archive.read(row["path"]))
            if not row["expect_decodable"].startswith("skip"):
                expected[name] = row["expect_decodable"] == "yes"
    with zipfile.ZipFile(tmp_path / "zipped.zip", "w") as zipped:
        for path in (tmp_path / "task").rglob("*"):
            zipped.write(path, "zipped" / path.relative_to(tmp_path / "task"))
    for task in ("task", "zipped"):
        source = folders.open_split(DataConfig(data="folders", data_dir=str(tmp_path)), task, "train")
        found = {}
        for index in range(len(source)):
            try:
                found[source.describe(index).rpartition("/")[2]] = bool(decoded(source[index].image).size)
            except Undecodable:
                found[source.describe(index).rpartition("/")[2]] = False
        assert found == expected
