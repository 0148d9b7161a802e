"""Models that are not called with one image: several inputs, nested ones, inputs by keyword alone."""

import dataclasses

import chex
import foreign_models as models
import jax
import numpy as np
import pytest

import cwps_jax as cwps
from cwps_jax.core.trees import flatten
from cwps_jax.data.preparation import Preparation
from cwps_jax.data.split import ArraySplit
from cwps_jax.methods.network import Network

CASES = {
    "several": (models.Several(), ("image", "numbers")),
    "by keyword": (models.Named(), {"pixels": "image", "clues": "numbers"}),
    "nested": (models.Nested(), ({"picture": "image", "more": ("numbers", "image")},)),
}
CONFIG = cwps.TrainConfig(
    method=cwps.methods.Cwps(search_distance="l2"),
    epochs=12,
    batch_size=16,
    learning_rate=0.1,
    budget=0.7,
)


def task(seed: int = 0, **changes) -> cwps.TaskData:
    """Returns a task whose label can be read in the numbers alone: the images are noise."""
    rng = np.random.default_rng(seed)

    def split(count):
        label = np.arange(count, dtype=np.int32) % 3
        numbers = np.eye(4, dtype=np.float32)[label] + 0.1 * rng.normal(size=(count, 4)).astype(np.float32)
        image = rng.normal(size=(count, 8, 8, 1)).astype(np.float32)
        return {"image": image, "numbers": numbers, "label": label}

    given = {"train": split(96), "validation": split(24), "test": split(30)}
    return cwps.TaskData(**{**given, **changes}, classes=3)


def by_hand(plain, arguments, variables, batch):
    """Returns what the plain model gives in evaluation, called as its user calls it."""
    calls = {
        models.Several: lambda: plain.apply(variables, batch["image"], batch["numbers"]),
        models.Named: lambda: plain.apply(
            variables, pixels=batch["image"], clues=batch["numbers"], deterministic=True
        ),
        models.Nested: lambda: plain.apply(
            variables, {"picture": batch["image"], "more": (batch["numbers"], batch["image"])}
        ),
    }
    return jax.jit(calls[type(plain)])()


@pytest.mark.parametrize("case", CASES)
def test_a_model_of_other_inputs_is_learned_stored_evaluated_and_predicts(tmp_path, case):
    plain, arguments = CASES[case]
    model, data = cwps.Inputs(plain, arguments), task()
    trainer = cwps.make_trainer(model, data, config=CONFIG)
    start = trainer.new_variables(0)
    pool = cwps.Pool.create(tmp_path / "pool", start, trainer.layout)
    learned = cwps.learn_task(pool, "t", model, data, config=CONFIG, trainer=trainer)
    assert learned.metric == 1 and 0 < learned.params_ratio <= CONFIG.budget
    stored = cwps.Pool.open(tmp_path / "pool").effective("t")
    chex.assert_trees_all_equal(stored, learned.variables)
    logits = by_hand(plain, arguments, stored, data.test)
    assert np.all(np.argmax(logits, axis=1) == data.test["label"])
    given = {"image": data.test["image"], "numbers": data.test["numbers"]}
    predicted = cwps.predict(pool, "t", given, model=model)
    np.testing.assert_allclose(predicted.logits, logits, rtol=1e-5, atol=1e-5)
    told = cwps.evaluate(pool, "t", {**given, "label": data.test["label"]}, model=model)
    assert told.metric == learned.metric


def test_the_parameters_are_the_plain_models_own():
    data = task()
    batch = {"image": data.test["image"], "numbers": data.test["numbers"]}
    for plain, arguments in CASES.values():
        model = cwps.Inputs(plain, arguments)
        layout = cwps.channel_layout(model, batch)
        assert all(not path.startswith("model/") for path in layout.layer_paths)
        variables = model.init(jax.random.key(0), batch)
        np.testing.assert_allclose(
            by_hand(plain, arguments, variables, batch), model.apply(variables, batch), rtol=1e-5, atol=1e-6
        )
        net = cwps.ChannelShared(model)
        assert (
            flatten(net.init(jax.random.key(0), batch)["params"]).keys()
            == flatten(variables["params"]).keys()
        )


def test_every_method_that_adds_nothing_to_the_model_takes_it(tmp_path):
    model, data = cwps.Inputs(models.Several(), ("image", "numbers")), task()
    trainer = cwps.make_trainer(model, data)
    pool = cwps.Pool.create(tmp_path / "pool", trainer.new_variables(0), trainer.layout)
    for method, parallel in (("finetune", "pmap"), ("probe", "jit"), ("lora", "jit"), ("taps", "jit")):
        config = cwps.TrainConfig(method=method, epochs=4, batch_size=16, parallel=parallel)
        given = trainer if parallel == "jit" else None
        learned = cwps.learn_task(pool, method, model, data, config=config, trainer=given)
        chex.assert_trees_all_equal(cwps.Pool.open(pool.folder).effective(method), learned.variables)


@pytest.fixture
def refused(tmp_path):
    """Returns a function (model, data, message): it is refused, untrained, in one line."""
    fine = cwps.make_trainer(cwps.Inputs(models.Several(), ("image", "numbers")), task())
    pool = cwps.Pool.create(tmp_path / "pool", fine.new_variables(0), fine.layout)

    def learn(model, data, message, config=CONFIG):
        never = lambda progress: pytest.fail("it trained")
        for trainer in (None, fine):
            with pytest.raises(cwps.CwpsError, match=message) as refusal:
                cwps.learn_task(pool, "t", model, data, config=config, observe=never, trainer=trainer)
            assert "\n" not in str(refusal.value)
        assert pool.tasks == ()

    return learn


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (models.Several(), r"cannot be called with the data's image.*'numbers'.*cwps\.Inputs"),
        (models.Named(), r"cannot be called with the data's image.*cwps\.Inputs"),
        (cwps.Inputs(models.Several(), ("image", "wrong")), "train data has no 'wrong'.*it has image"),
        (cwps.Inputs(models.Several(), ("numbers", "numbers")), "no 'image'.*'pixels': 'image'"),
        (cwps.Inputs(models.Several(), ("image",)), r"cannot be called with the data's image.*'numbers'"),
        (cwps.Inputs(models.Several(), "image"), "cwps.Inputs.*a tuple or a dict"),
        (cwps.Inputs(models.Several(), ("image", 3)), "cwps.Inputs.*a tuple or a dict"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_before_the_first_step(refused, model, message):
    refused(model, task(), message)


def test_inputs_that_differ_between_splits_or_are_not_finite_are_refused(refused):
    model, data = cwps.Inputs(models.Several(), ("image", "numbers")), task()
    test = data.test.fields
    refused(
        model, task(test={**test, "numbers": test["numbers"][:, :3]}), r"test 'numbers' is \(3,\) float32"
    )
    wrong = test["numbers"].copy()
    wrong[7, 1] = np.nan
    refused(model, task(test={**test, "numbers": wrong}), "test 'numbers' 7 has a value that is nan")


def test_mixup_of_images_alone_is_refused(refused):
    model, data = cwps.Inputs(models.Several(), ("image", "numbers")), task()
    blended = ArraySplit(data.train.fields, Preparation(mixup=0.5))
    refused(model, task(train=blended), "mixup and cutmix blend images alone.*'numbers'")


def test_prompts_are_refused_for_a_model_of_other_inputs(tmp_path):
    model, data = cwps.Inputs(models.VisionTransformer(), ("image",)), task()
    trainer = cwps.make_trainer(model, data)
    pool = cwps.Pool.create(tmp_path / "pool", trainer.new_variables(0), trainer.layout)
    with pytest.raises(
        cwps.CwpsError, match="method dualprompt: .* one image, .* takes image by cwps.Inputs"
    ):
        cwps.learn_task(pool, "t", model, data, config=cwps.TrainConfig(method="dualprompt"), trainer=trainer)


def test_predicting_without_one_of_the_inputs_is_refused(tmp_path):
    model, data = cwps.Inputs(models.Several(), ("image", "numbers")), task()
    config = cwps.TrainConfig(method="probe", epochs=1, batch_size=16)
    trainer = cwps.make_trainer(model, data, config=config)
    pool = cwps.Pool.create(tmp_path / "pool", trainer.new_variables(0), trainer.layout)
    cwps.learn_task(pool, "t", model, data, config=config, trainer=trainer)
    for images in (data.test["image"], {"image": data.test["image"]}):
        with pytest.raises(cwps.CwpsError, match="the data has no 'numbers'"):
            cwps.predict(pool, "t", images, model=model)
    wrong = {"image": data.test["image"], "numbers": data.test["numbers"][:, :3]}
    for given, named in (
        (wrong, model),
        (data.test.fields, cwps.Inputs(models.Named(), CASES["by keyword"][1])),
    ):
        with pytest.raises(
            cwps.CwpsError, match="t@1: its parameters do not fit the model or what"
        ) as refusal:
            cwps.predict(pool, "t", given, model=named)
        assert "\n" not in str(refusal.value)
    with pytest.raises(cwps.CwpsError, match="t@1: the data has no 'image', only"):
        cwps.predict(pool, "t", {"numbers": data.test["numbers"]}, model=model)


@pytest.mark.parametrize(
    "plain",
    [
        models.ConvNet(),
        models.VisionTransformer(),
        models.VisionTransformer(scanned=True),
        models.EncoderDecoder(),
        models.OwnLayers(),
        models.Classifier(models.Encoder((5, 7))),
        models.NormedHeadNet(3),
        models.Outer(),
        models.Partitioned(),
    ],
    ids=lambda plain: type(plain).__name__,
)
def test_all_that_is_known_of_a_model_is_the_same_of_its_inputs(plain):
    image = jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)
    known = []
    for model, example in ((plain, image), (cwps.Inputs(plain, ("image",)), {"image": image})):
        layout = cwps.channel_layout(
            model, example, head=("head", "classifier")[type(plain) is models.ConvNet]
        )
        network = Network(model, layout, example)
        found = (network.depths, network.grouped, network.attentions, network.batch_norms, network.cast_types)
        known.append((layout, *found, network._work))
    assert known[0] == known[1]
    assert known[0][1]


def test_training_is_the_plain_models_to_the_bit_and_costs_as_much(tmp_path):
    """Norms are estimated anew, and the hard stage takes gradients of open channels alone, within it too."""
    plain, data = models.NormedHeadNet(3), task()
    start = cwps.make_trainer(plain, data).new_variables(0)
    config = dataclasses.replace(CONFIG, epochs=3, keep_head=True)
    found = []
    for number, model in enumerate((plain, cwps.Inputs(plain, ("image",)))):
        trainer = cwps.make_trainer(model, data, config=config)
        pool = cwps.Pool.create(tmp_path / str(number), start, trainer.layout)
        learned = cwps.learn_task(pool, "t", model, data, config=config, trainer=trainer)
        found.append((learned.variables, learned.record["flops_per_step"]))
    chex.assert_trees_all_equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_images_are_normalised_on_the_device_and_other_inputs_are_not(tmp_path):
    """In training, in new norm statistics, in evaluation, in prediction: as if they came normalised."""
    model = cwps.Inputs(models.Several(), ("image", "numbers"))
    pixels = Preparation(mean=(0.5,), deviation=(0.25,))
    plain, rng = task(), np.random.default_rng(1)
    stored, ready = {}, {}
    for name in ("train", "validation", "test"):
        fields = getattr(plain, name).fields
        raw = rng.integers(0, 256, fields["image"].shape, np.uint8)
        stored[name] = ArraySplit({**fields, "image": raw}, pixels)
        ready[name] = {**fields, "image": np.float32((raw / 255 - 0.5) / 0.25)}
    start = cwps.make_trainer(model, plain).new_variables(0)
    config = dataclasses.replace(CONFIG, epochs=3)
    found = []
    for number, splits in enumerate((stored, ready)):
        data = cwps.TaskData(**splits, classes=3)
        trainer = cwps.make_trainer(model, plain, config=config)
        pool = cwps.Pool.create(tmp_path / str(number), start, trainer.layout)
        learned = cwps.learn_task(pool, "t", model, data, config=config, trainer=trainer)
        given = {name: data.test[name] for name in ("image", "numbers")}
        found.append((learned.variables, cwps.predict(pool, "t", given, model=model).logits))
    chex.assert_trees_all_close(found[0], found[1], rtol=1e-3, atol=1e-4)
