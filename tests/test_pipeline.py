"""Batches of images that are decoded as they are needed: the same whoever reads them, each counted once."""

import dataclasses

import jax
import numpy as np
import pytest
from test_load import SETTINGS, FileSource, files, opener

from cwps_jax import TrainConfig, make_trainer
from cwps_jax.data import transforms
from cwps_jax.data.cache import open_cache
from cwps_jax.data.load import load_task
from cwps_jax.data.pipeline import evaluation_batches, training_batches
from cwps_jax.data.split import ArraySplit
from cwps_jax.errors import CwpsError
from cwps_jax.parallel import Parallel, Share
from cwps_jax.train.evaluation import Predictor, measure
from cwps_jax.train.objectives import accuracy

AUGMENTED = dataclasses.replace(
    SETTINGS,
    crop="random_resized",
    flip=True,
    color_jitter=(0.4, 0.4, 0.4, 0.1),
    randaugment_layers=2,
    resize=9,
)


def load(settings=AUGMENTED, cache=None, test=12):
    sources = {"train": files("train", 50), "test": files("test", test, seed=1)}
    return load_task(opener(**sources), settings, "t", cache=cache)


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


@pytest.fixture(scope="module")
def batches():
    return list(training_batches(load().train, 8, seed=3, start=0, stop=14))


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_threads_change_nothing(batches, threads):
    split = load(dataclasses.replace(AUGMENTED, reader_threads=threads, prefetch=3)).train
    assert split.threads == threads
    for one, other in zip(training_batches(split, 8, 3, 0, 14), batches, strict=True):
        same(one, other)


def test_a_restart_goes_on_with_the_exact_next_batch(batches):
    for one, other in zip(training_batches(load().train, 8, 3, 9, 14), batches[9:], strict=True):
        same(one, other)


def test_an_image_in_the_first_epoch_is_augmented_alike_in_a_batch_of_any_size(batches):
    images = np.concatenate([batch["image"] for batch in batches[:5]])
    larger = np.concatenate([batch["image"] for batch in training_batches(load().train, 20, 3, 0, 2)])
    np.testing.assert_array_equal(larger, images)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_read_their_share_of_the_same_batches(batches, hosts):
    shares = []
    for host in range(hosts):
        task = load()
        before = task.train.source.reads
        shares.append(list(training_batches(task.train, 8, 3, 0, 14, Share(host, hosts))))
        assert task.train.source.reads - before == 14 * 8 // hosts
    for step, whole in enumerate(batches):
        for name in whole:
            parts = [share[step][name] for share in shares]
            np.testing.assert_array_equal(np.concatenate(parts), whole[name])


def test_processes_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(CwpsError, match="batch_size = 8: must be a multiple of the 3 processes"):
        training_batches(load().train, 8, 3, 0, 14, Share(0, 3))


def test_another_step_or_seed_is_another_augmentation():
    settings = dataclasses.replace(AUGMENTED, shots=3)
    split = load(settings).train  # 9 images: every batch of 9 is all of them
    by_label = lambda batch: batch["image"][np.argsort(batch["label"], kind="stable")]
    first, second = (by_label(batch) for batch in training_batches(split, 9, 0, 0, 2))
    (other,) = (by_label(batch) for batch in training_batches(split, 9, 1, 0, 1))
    assert np.abs(first.astype(float) - second).mean() > 5
    assert np.abs(first.astype(float) - other).mean() > 5


def test_every_image_of_every_batch_is_augmented_in_its_own_way():
    split = load().train.take(np.zeros(16, int))  # one image, over and over
    images = [image.tobytes() for batch in training_batches(split, 8, 0, 0, 4) for image in batch["image"]]
    assert len(images) == len(set(images)) == 32


def test_an_option_does_not_change_what_another_draws_in_a_batch(monkeypatch):
    monkeypatch.setattr(transforms, "randaugment", lambda picture, *_: picture)
    found = [
        list(
            training_batches(
                load(dataclasses.replace(AUGMENTED, randaugment_layers=layers)).train, 8, 0, 0, 2
            )
        )
        for layers in (0, 2)
    ]
    for one, other in zip(*found, strict=True):
        same(one, other)


@pytest.mark.parametrize("kind", ["memory", "disk"])
@pytest.mark.parametrize("crop", ["center", "random"])
def test_a_cache_changes_no_pixel_and_saves_the_reading(tmp_path, kind, crop):
    settings = dataclasses.replace(AUGMENTED, crop=crop)
    wanted = list(training_batches(load(settings).train, 8, 3, 0, 14))
    task = load(settings, open_cache(kind, tmp_path, 10**9))
    for one, other in zip(training_batches(task.train, 8, 3, 0, 14), wanted, strict=True):
        same(one, other)
    reads = task.train.source.reads
    for one, other in zip(training_batches(task.train, 8, 3, 0, 14), wanted, strict=True):
        same(one, other)
    assert task.train.source.reads == reads


def test_a_cache_is_keyed_by_content_and_size(tmp_path):
    cache = open_cache("memory", tmp_path, 10**9)
    small = load(SETTINGS, cache).test.read(np.arange(12), None)["image"]
    large = load(dataclasses.replace(SETTINGS, resize=10), cache).test.read(np.arange(12), None)["image"]
    other = FileSource("test", files("test", 12, seed=2).contents, [0, 1, 2] * 4)
    swapped = load_task(opener(train=files("train", 50), test=other), SETTINGS, "t", cache=cache).test
    fresh = load_task(opener(train=files("train", 50), test=other), SETTINGS, "t").test
    assert (small != large).any()
    np.testing.assert_array_equal(
        swapped.read(np.arange(12), None)["image"], fresh.read(np.arange(12), None)["image"]
    )


def test_a_file_that_is_gone_in_mid_training_is_named():
    task = load()
    task.train.source.contents[int(task.train.items[4])] = b"gone"
    with pytest.raises(CwpsError, match=rf"train/{task.train.items[4]}\.png: no longer a readable image"):
        list(training_batches(task.train, 8, 3, 0, 6))


@pytest.mark.parametrize("count", [1, 7, 8, 23])
def test_evaluation_reads_every_image_once_in_order(count):
    split = load(SETTINGS, test=count).test
    before = split.source.reads
    batches = list(evaluation_batches(split, 8))
    assert split.source.reads - before == count
    labels = np.concatenate([batch["label"][:real] for batch, real in batches])
    np.testing.assert_array_equal(labels, split.fields["label"])
    assert {len(batch["image"]) for batch, _ in batches} == {8}


@pytest.fixture(scope="module")
def trainer(tiny_model):
    return make_trainer(tiny_model, load(SETTINGS), config=TrainConfig(head="head"))


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_accuracy_counts_every_image_exactly_once(tiny_model, trainer, devices, mode):
    variables = trainer.new_variables(0)
    predict = Predictor(tiny_model, Parallel(mode, tuple(jax.devices()[:devices])))
    for count in (1, 5, 11):
        split = load(SETTINGS, test=count).test
        outputs = predict(variables, split, 4)
        assert outputs.shape == (count, 3)
        # Image by image, by the model itself.
        images = split.preparation.normalise(split.read(np.arange(count), None)["image"])
        alone = np.stack([tiny_model.apply(variables, image[None])[0] for image in images])
        np.testing.assert_allclose(outputs, alone, atol=1e-5)
        right = (alone.argmax(-1) == split.fields["label"]).sum()
        assert measure(accuracy, outputs, split) * count == pytest.approx(right)


def test_bytes_normalised_on_the_device_train_as_numbers_normalised_on_the_host(trainer):
    """The same training on decoded images and on arrays of what they are."""
    task = load(SETTINGS)
    everything = task.train.read(np.arange(len(task.train)), None)
    normalised = np.asarray(task.train.preparation.normalise(everything["image"]))
    arrays = ArraySplit({**everything, "image": normalised})
    config = TrainConfig(method="finetune", epochs=1, batch_size=16, learning_rate=0.1)
    losses = []
    for split in (task.train, arrays):
        trainer.train(trainer.new_variables(0), split, config, observe=lambda one: losses.append(one.loss))
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize("mixing", [{"mixup": 0.4}, {"cutmix": 1.0}])
def test_mixing_trains_alike_under_jit_and_pmap(tiny_model, mixing):
    task = load(dataclasses.replace(SETTINGS, **mixing))
    plain = load(SETTINGS)
    config = TrainConfig(method="finetune", epochs=1, batch_size=16, learning_rate=0.1)
    losses = {}
    for name, mode, data in (("jit", "jit", task), ("pmap", "pmap", task), ("plain", "jit", plain)):
        trainer = make_trainer(tiny_model, data, config=dataclasses.replace(config, parallel=mode))
        trainer.train(
            trainer.new_variables(0),
            data.train,
            config,
            observe=lambda one, name=name: losses.update({name: one.loss}),
        )
    assert losses["jit"] == pytest.approx(losses["pmap"], rel=1e-5)
    assert abs(losses["jit"] - losses["plain"]) > 1e-4


def test_an_odd_number_of_images_on_a_device_cannot_be_mixed(tiny_model):
    task = load(dataclasses.replace(SETTINGS, mixup=0.4))
    config = TrainConfig(method="finetune", epochs=1, batch_size=8)
    trainer = make_trainer(tiny_model, task, config=config)
    with pytest.raises(CwpsError, match="batch_size = 8: must be a multiple of 16"):
        trainer.train(trainer.new_variables(0), task.train, config)
