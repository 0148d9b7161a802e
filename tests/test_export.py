"""A task as a program that runs without this package, and a pool as one file."""

import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
import served

import cwps_jax as cwps
from cwps_jax import data, models
from cwps_jax.core.trees import flatten
from cwps_jax.pool.__main__ import main
from cwps_jax.serve.export_program import PROGRAM, TASK

# What docs/serving.md shows, after all that is not JAX's own is made impossible to import.
READER = """
import sys
for name in ("cwps_jax", "flax", "optax", "orbax", "safetensors", "PIL"):
    sys.modules[name] = None
import json, zipfile
import numpy as np
from jax import export
with zipfile.ZipFile(sys.argv[1]) as archive:
    about = json.loads(archive.read("task.json"))
    program = export.deserialize(bytearray(archive.read("program.bin")))
images = np.load(sys.argv[2])
assert about["input"]["shape"][1:] == list(images.shape[1:]) and about["input"]["dtype"] == images.dtype.name
whole, three = (np.asarray(program.call(part)) for part in (images, images[:3]))
assert np.abs(whole[:3] - three).max() < 1e-6 and len(about["class_names"]) == whole.shape[1]
np.save(sys.argv[3], whole)
"""


def assert_same(found, wanted) -> None:
    """Two compiled programs of the same network round differently: by a unit or two in the last place."""
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * max(1, np.abs(wanted).max()))


@pytest.fixture(scope="module")
def pool(served_pool) -> cwps.Pool:
    return served_pool


@pytest.fixture(scope="module")
def folder(pool):
    return pool.folder.parent


@pytest.fixture(scope="module")
def asked(pool, folder) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of the test split, resized and cut, and what predict answers for them."""
    split = data.load(served.settings(folder / "DATA"), "negative").test
    images = split.read(np.arange(len(split)), None)["image"]
    return images, cwps.predict(pool, "negative", split).logits


def test_a_program_answers_as_predict_for_any_number_of_images(pool, asked):
    program = cwps.exported_program(pool, "negative")
    assert program.platforms == ("cpu", "cuda", "tpu")
    (taken,) = program.in_avals
    assert str(taken.shape) == "(batch, 12, 12, 3)" and taken.dtype == np.uint8
    images, wanted = asked
    for count in (1, len(images)):
        assert_same(program.call(images[:count]), wanted[:count])


def test_a_program_runs_where_there_is_jax_alone(pool, asked, tmp_path, capsys):
    pytest.importorskip("flatbuffers")
    images, wanted = asked
    pool_folder, file = str(pool.folder), str(tmp_path / "negative.stablehlo.zip")
    main(["export", pool_folder, "negative", file])
    assert capsys.readouterr().out == f"negative@1: {file}\n"
    np.save(tmp_path / "images.npy", images)
    arguments = [file, str(tmp_path / "images.npy"), str(tmp_path / "logits.npy")]
    subprocess.run([sys.executable, "-I", "-c", READER, *arguments], check=True, cwd=tmp_path)
    assert_same(np.load(tmp_path / "logits.npy"), wanted)
    with zipfile.ZipFile(file) as archive:
        about = json.loads(archive.read(TASK))
        assert archive.namelist() == [TASK, PROGRAM]
    assert about["class_names"] == list(served.CLASSES) and about["task"] == "negative@1"
    assert about["done_before"] == {
        "image_size": 12, "resize": 13, "crop": "center", "interpolation": "bilinear", "image_bits": 0,
    }  # fmt: skip
    assert about["done_inside"]["pixel_mean"] == [0.485, 0.456, 0.406]


def test_a_program_takes_arrays_and_a_model_of_ones_own_as_they_are(pool, tmp_path):
    shutil.copytree(pool.folder, tmp_path / "pool")
    index = tmp_path / "pool" / "index.json"
    values = json.loads(index.read_text())
    values["backbone"] = ""
    known = values["versions"][1]["record"]["learned_with"]  # as of a task that was learned from arrays
    known["preparation"] = {"pixel_mean": None, "pixel_deviation": None}
    index.write_text(json.dumps(values))
    own, model = cwps.Pool.open(tmp_path / "pool"), models.create("resnet8", 3)
    with pytest.raises(cwps.CwpsError, match="a model of your own"):
        cwps.exported_program(own, "negative")
    program = cwps.exported_program(own, "negative", model)
    images = np.random.default_rng(0).standard_normal((5, 12, 12, 3)).astype(np.float32)
    wanted = cwps.predict(own, "negative", images, model=model).logits
    assert_same(program.call(images), wanted)


class Uneven(type(models.create("resnet8", 3))):
    """A model that treats large batches otherwise."""

    count = len

    def __call__(self, images, train=False):
        return super().__call__(images[:2] if type(self).count(images) > 2 else images, train)


@pytest.mark.parametrize("count", [len, lambda images: images.shape[0]])
def test_a_model_that_counts_its_images_is_named(pool, count, monkeypatch):
    monkeypatch.setattr(Uneven, "count", staticmethod(count))
    plain = models.create("resnet8", 3)
    fields = (field.name for field in dataclasses.fields(plain) if field.name not in ("parent", "name"))
    settings = {name: getattr(plain, name) for name in fields}
    with pytest.raises(cwps.CwpsError, match="any number of images .*compute nothing in it") as caught:
        cwps.exported_program(pool, "negative", Uneven(**settings))
    assert "\n" not in str(caught.value)


def test_a_transformer_is_traced_for_any_number_of_images():
    model, variables = cwps.load_backbone("vit_nano4", num_classes=3, image_size=8)
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, 8, 8, 3), np.float32)
    program = jax.export.export(jax.jit(lambda x: model.apply(variables, x, train=False)))(images)
    assert str(program.out_avals[0].shape) == "(batch, 3)"


def test_what_cannot_be_a_program_is_one_line(pool, tmp_path, monkeypatch):
    file = tmp_path / "negative.stablehlo.zip"
    with pytest.raises(cwps.CwpsError, match="a program has no key names; leave out 'timm'"):
        cwps.export(pool, "negative", file, keys="timm")
    with pytest.raises(cwps.CwpsError, match=r"name it \*.safetensors or \*.stablehlo.zip"):
        cwps.export(pool, "negative", tmp_path / "negative.zip")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(cwps.CwpsError, match=r"pip install 'cwps_jax\[export\]'"):
        cwps.export(pool, "negative", file)
    assert not file.exists()


def test_a_packed_pool_is_the_same_pool_elsewhere(pool, tmp_path, capsys):
    first, second = tmp_path / "bank.zip", tmp_path / "again.zip"
    main(["pack", str(pool.folder), str(first)])
    cwps.pack_pool(pool, second)
    assert first.read_bytes() == second.read_bytes()
    assert "bank.zip" in capsys.readouterr().out
    main(["unpack", str(tmp_path / "there"), str(first), "--json"])
    assert json.loads(capsys.readouterr().out)["tasks"] == list(pool.tasks)
    there = cwps.Pool.open(tmp_path / "there")
    assert there.tasks == pool.tasks and not there.verify()
    for task in pool.tasks:
        wanted, found = (flatten(one.effective(task)) for one in (pool, there))
        assert all(np.array_equal(found[path], wanted[path]) for path in wanted)
    # Nothing of this package is needed to read it: an array is its plain values.
    with zipfile.ZipFile(first) as archive:
        described = json.loads(archive.read("pretrained/leaves.json"))["params/head/kernel"]
        values = np.frombuffer(archive.read(f"pretrained/arrays/{described['dtype']}/0"), described["dtype"])
    start, shape = described["offset"], described["shape"]
    wanted = pool.effective("pretrained")["params"]["head"]["kernel"]
    np.testing.assert_array_equal(values[start : start + np.prod(shape)].reshape(shape), wanted)
    with pytest.raises(cwps.CwpsError, match="there: is there already"):
        cwps.unpack_pool(first, tmp_path / "there")


def test_a_packed_pool_that_is_not_what_was_packed_is_refused(pool, tmp_path):
    sound, file, target = tmp_path / "sound.zip", tmp_path / "bank.zip", tmp_path / "there"
    cwps.pack_pool(pool, sound)
    content = sound.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    with zipfile.ZipFile(sound) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    own = next(name for name in members if name.startswith("tasks/negative@1/own/arrays/float32"))

    def packed(changed: dict[str, bytes], **options) -> bytes:
        with zipfile.ZipFile(file, "w", **options) as archive:
            for name, one in {**members, **changed}.items():
                archive.writestr(name, one)
        return file.read_bytes()

    for given, told in (
        (bytes(flipped), "damaged or no zip archive"),
        (content[:1000], "damaged or no zip archive"),
        (packed({own: members[own][:-4] + b"abcd"}), "1 damaged, the first tasks/negative@1/own"),
        (packed({}, compression=zipfile.ZIP_DEFLATED), "neither compressed nor secret"),
        (packed({"index.json": b"{}"}), "not a pool of format"),
    ):
        file.write_bytes(given)
        with pytest.raises(cwps.CwpsError, match=told) as caught:
            cwps.unpack_pool(file, target)
        assert "\n" not in str(caught.value)
        assert sorted(tmp_path.iterdir()) == [file, sound]
    file.write_bytes(packed({"../outside": b"x"}))
    cwps.unpack_pool(file, target)
    assert not (tmp_path / "outside").exists()


def test_a_damaged_pool_is_not_packed(pool, tmp_path):
    shutil.copytree(pool.folder, tmp_path / "pool")
    stored = next((tmp_path / "pool/tasks/negative@1/own/arrays/float32").iterdir())
    stored.write_bytes(stored.read_bytes()[:-4] + b"abcd")
    with pytest.raises(cwps.CwpsError, match="1 damaged, the first tasks/negative@1/own"):
        cwps.pack_pool(cwps.Pool.open(tmp_path / "pool"), tmp_path / "bank.zip")
    assert not (tmp_path / "bank.zip").exists()
