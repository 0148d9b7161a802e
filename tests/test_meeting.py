"""Where data, model, loss and metric meet: what does not fit is refused before the first step."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TinyModel
from sklearn.metrics import f1_score

import cwps_jax as cwps
from cwps_jax.core.trees import select

CONFIG = cwps.TrainConfig(method="probe", epochs=1, batch_size=16)


def split(count: int = 48, size: int = 8, **changes) -> dict:
    images = np.random.default_rng(count).normal(size=(count, size, size, 1)).astype(np.float32)
    return {"image": images, "label": np.arange(count) % 3, **changes}


def task(classes: int | None = 3, size: int = 8, **changes) -> cwps.TaskData:
    whole = split(size=size, **changes)
    return cwps.TaskData(whole, whole, whole, classes)


TARGETS = split()["image"].mean((1, 2, 3))


@pytest.fixture
def pool(tmp_path, tiny_variables, tiny_layout) -> cwps.Pool:
    return cwps.Pool.create(tmp_path / "pool", tiny_variables, tiny_layout)


@pytest.fixture
def refused(pool):
    """Returns a function (data, message, model, what `learn_task` takes): it is refused, untrained."""

    def learn(data, message, model=TinyModel(), config=CONFIG, **options):
        never = lambda progress: pytest.fail("it trained")
        with pytest.raises(cwps.CwpsError, match=message) as refusal:
            cwps.learn_task(pool, "t", model, data, config=config, observe=never, **options)
        assert "\n" not in str(refusal.value)
        assert pool.tasks == ()

    return learn


def squared(outputs, batch):
    return (outputs[:, 0] - batch["label"]) ** 2


def test_a_dict_or_a_tuple_for_task_data_is_refused(refused):
    for data in (split(), (split(), split())):
        refused(data, f"data is a {type(data).__name__}: give a TaskData")
        with pytest.raises(cwps.CwpsError, match="give a TaskData"):
            cwps.make_trainer(TinyModel(), data)
    refused(task(), "config is a dict: give cwps.TrainConfig", config={"epochs": 3})


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda o, b: squared(o, b).mean(), r"gives \(\) for 16 items.*leave the mean over the batch"),
        (lambda o, b: (o[:, :1] - b["label"]) ** 2, r"gives \(16, 16\).*\(16, 1\) and \(16,\) were combined"),
        (lambda o, b: (o - b["label"][:, None]) ** 2, r"gives \(16, 3\).*mean over all axes but the first"),
        (lambda o, b: {"loss": squared(o, b)}, "gives dict for 16 items"),
        (lambda o, b: o[:, 0] - b["target"], "cannot be computed.*KeyError: 'target'"),
        (lambda o, b: jnp.matmul(o, b["label"]), r"outputs \(16, 3\).*label \(16,\)"),
        (lambda o, b: np.asarray(o)[:, 0], "TracerArrayConversionError"),
    ],
    ids=["scalar", "broadcast", "per value", "dict", "no such field", "shapes", "numpy"],
)
def test_a_loss_or_metric_of_the_wrong_shape_is_refused(refused, loss, message):
    data = task(None, label=TARGETS)
    refused(data, f"the loss .*{message}", loss=loss, metric=squared)
    refused(data, f"the metric .*{message}", loss=squared, metric=loss)


def test_a_field_that_only_the_test_data_lack_is_found_before_training(refused):
    whole = split(label=TARGETS)
    data = cwps.TaskData(whole, whole, {"image": whole["image"]})
    refused(data, r"the metric cannot be computed of outputs \(256, 3\)", loss=squared, metric=squared)


def test_labels_are_looked_at_against_the_outputs_of_the_default_loss(refused):
    refused(task(10), "the model has 3 outputs, the data 10 classes")
    refused(
        task(None, label=np.arange(48) % 5), "train label 3 of item 3: must be from 0 to 2.*give classes=5"
    )
    refused(task(None, label=TARGETS), "train labels are float32: must be whole numbers")
    refused(task(None, label=np.zeros((48, 1), int)), r"a column, \(48, 1\): give label\[:, 0\]")


class PerPixel(nn.Module):
    """The tiny backbone with one output a pixel."""

    @nn.compact
    def __call__(self, images, train: bool = False):
        x = nn.Conv(6, (3, 3), use_bias=False, name="conv1")(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        return nn.Conv(1, (1, 1), name="head")(nn.relu(nn.Conv(8, (3, 3), strides=2, name="conv2")(x)))


class Pooled(TinyModel):
    """Loses the axis of the batch."""

    def __call__(self, images, train: bool = False):
        return super().__call__(images, train).mean(0)


def test_outputs_that_the_default_loss_or_no_loss_can_take_are_refused(refused):
    refused(task(), r"outputs \(256, 4, 4, 1\) for 256 images: the default loss", model=PerPixel())
    refused(task(), r"outputs \(3,\) for images \(256, 8, 8, 1\): must be one per image", model=Pooled())


def test_a_trainer_that_was_made_for_another_model_is_refused(refused):
    class Renamed(nn.Module):
        @nn.compact
        def __call__(self, images, train: bool = False):
            return nn.Dense(3, name="head")(nn.Conv(6, (3, 3), name="stem")(images).mean((1, 2)))

    trainer = cwps.make_trainer(TinyModel(), task(), config=CONFIG)
    message = r"made for another model.*: conv1/kernel is \(3, 3, 1, 6\) there and none here"
    refused(task(), message, model=Renamed(), trainer=trainer)
    data = cwps.TaskData(*3 * [split(label=np.arange(48) % 5)], classes=5)
    refused(data, r"head/bias is \(3,\) there and \(5,\) here", model=TinyModel(5), trainer=trainer)


def test_arguments_in_another_order_and_whole_variables_are_refused(pool, tiny_variables, tiny_layout):
    child, gates = tiny_variables["params"], cwps.gates(cwps.init_scores(tiny_layout), 1.0)
    parent = select(child, tiny_layout.layer_paths)
    for arguments, message in {
        (0, 1, 2): None,
        (1, 0, 2): "the child has no head/bias, which the parent has.*the other order",
        (3, 1, 2): r"parent is whole variables, \['batch_stats', 'params'\]: give variables\['params'\]",
        (0, 3, 2): r"child is whole variables",
        (0, 1, 4): "gates is a Pool",
    }.items():
        given = [(parent, child, gates, tiny_variables, pool)[one] for one in arguments]
        if message is None:
            assert cwps.mix(*given).keys() == child.keys()
            continue
        with pytest.raises(cwps.CwpsError, match=message):
            cwps.mix(*given)
    with pytest.raises(cwps.CwpsError, match=r"composite_parent\(child, pool\): the child is a Pool"):
        cwps.composite_parent(pool, child)
    with pytest.raises(cwps.CwpsError, match=r"the child is whole variables"):
        cwps.composite_parent(tiny_variables, pool)


def macro_f1(outputs, fields):
    return f1_score(fields["label"], outputs.argmax(1), average="macro")


def test_a_metric_over_a_whole_split_is_computed_once_on_all_outputs(pool):
    rng = np.random.default_rng(0)
    many = split(600, label=rng.choice(3, 600, p=[0.8, 0.15, 0.05]))  # more than a metric sees at once
    data = cwps.TaskData(split(), many, many, classes=3)
    rows = []
    learned = cwps.learn_task(
        pool,
        "t",
        TinyModel(),
        data,
        metric=cwps.whole_split(macro_f1),
        config=dataclasses.replace(CONFIG, epochs=2, learning_rate=0.1),
        observe=rows.append,
    )
    logits = TinyModel().apply(learned.variables, many["image"])
    assert learned.metric == f1_score(many["label"], np.argmax(logits, 1), average="macro")
    assert learned.validation_metric == learned.metric
    assert all(np.isnan(row.metric) and np.isfinite(row.loss) for row in rows)


def test_a_metric_over_a_whole_split_that_cannot_work_is_found_before_training(refused):
    per_item = lambda outputs, fields: outputs.argmax(1) == fields["label"]
    refused(task(), r"whole split gives \(48,\) bool: must be one number", metric=cwps.whole_split(per_item))
    wrong = lambda outputs, fields: f1_score(fields["label"], outputs)
    refused(task(), "the metric cannot be computed.*ValueError", metric=cwps.whole_split(wrong))


class OverDevices(TinyModel):
    """As Flax's own ImageNet example is: its norms average over an axis that pmap has, and jit has not."""

    @nn.compact
    def __call__(self, images, train: bool = False):
        images = nn.BatchNorm(not train, axis_name="batch", name="input_norm")(images)
        return TinyModel.__call__(self, images, train=train)


def test_norms_over_an_axis_that_is_not_there_are_refused(tmp_path):
    model = OverDevices()
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    layout = cwps.channel_layout(model, jnp.zeros((1, 8, 8, 1)))
    pool = cwps.Pool.create(tmp_path / "pool", variables, layout)
    never = lambda progress: pytest.fail("it trained")
    with pytest.raises(cwps.CwpsError, match="averages over an axis .*batch.*build it without axis_name"):
        cwps.learn_task(pool, "t", model, task(), config=CONFIG, observe=never)


def test_a_task_of_the_pretrained_classes_may_begin_with_their_head(pool, tiny_variables):
    """Unmoved by training, its answers are the pre-trained model's; a padded head is filled from the left."""
    config = dataclasses.replace(CONFIG, learning_rate=0.0, keep_head=True, seed=5)
    count = tiny_variables["params"]["head"]["bias"].shape[0]
    data, wider = task(classes=count), TinyModel(classes=count + 2)
    kept = cwps.learn_task(pool, "kept", TinyModel(classes=count), data, config=config)
    padded = cwps.learn_task(
        pool,
        "padded",
        TinyModel(classes=count),
        data,
        config=config,
        trainer=cwps.make_trainer(wider, data, config=config),
    )
    for learned in (kept, padded):
        chex.assert_trees_all_equal(learned.variables["params"]["head"], tiny_variables["params"]["head"])
    new = cwps.learn_task(
        pool, "new", TinyModel(classes=count), data, config=dataclasses.replace(config, keep_head=False)
    )
    assert np.any(new.variables["params"]["head"]["kernel"] != tiny_variables["params"]["head"]["kernel"])
    with pytest.raises(cwps.CwpsError, match=r"config.keep_head: .*head/.* tasks of other classes"):
        cwps.learn_task(pool, "other", wider, task(classes=count + 2), config=config)
