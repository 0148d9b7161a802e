"""Checks that a task's data, model, loss and metric fit together, before the first step."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cwps_jax.core.trees import flatten, unflatten
from cwps_jax.data.arrays_check import check_labels, not_finite
from cwps_jax.data.split import Split
from cwps_jax.data.task import TaskData
from cwps_jax.errors import CwpsError
from cwps_jax.inputs import check_inputs, input_names, inputs_of
from cwps_jax.settings import TrainConfig
from cwps_jax.tracing import mode
from cwps_jax.train.evaluation import ITEMS, measure
from cwps_jax.train.objectives import WholeSplit, accuracy, cross_entropy, smoothed
from cwps_jax.train.step import apply_model, random_keys
from cwps_jax.train.trainer import Trainer

# What JAX, NumPy and optax raise where shapes or names do not fit.
MISFITS = (TypeError, ValueError, KeyError, IndexError, AttributeError, AssertionError)


def check_given(data: Any, config: Any) -> None:
    """Raises CwpsError unless these are a `TaskData` and a `TrainConfig`."""
    if not isinstance(data, TaskData):
        raise CwpsError(
            f"data is a {type(data).__name__}: give a TaskData, as by "
            "cwps.TaskData.from_arrays({'image': ..., 'label': ...}, test, classes=...)"
        )
    if not isinstance(config, TrainConfig):
        raise CwpsError(f"config is a {type(config).__name__}: give cwps.TrainConfig(...)")


@contextlib.contextmanager
def calling(model: nn.Module, inputs: Any) -> Iterator[None]:
    """A context in which a model that cannot be called with the data's arrays raises a CwpsError.

    Args:
        model: the model.
        inputs: shapes of its inputs.
    """
    try:
        yield
    except CwpsError:
        raise
    except MISFITS as error:
        raise CwpsError(
            f"the model cannot be called with the data's {' and '.join(input_names(model))}, {_told(inputs)} "
            f"({_one_line(error)}); name what it takes by cwps.Inputs(model, ...)"
        ) from error


def check_meeting(trainer: Trainer, model: nn.Module, data: TaskData, config: TrainConfig) -> None:
    """Raises CwpsError unless a trainer can learn a task with a model; only shapes are computed.

    Only a metric over a whole split is really computed, on random outputs.

    Args:
        trainer: the trainer of the task, with the loss and the metric.
        model: the task's own, whose head may be smaller than the trainer's.
        data: the task's.
        config: the task's.
    """
    _check_optimizer(trainer, config)
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    _check_inputs(model, splits)
    outputs = _outputs(trainer, model, data, ITEMS)
    if trainer.loss is cross_entropy or trainer.metric is accuracy:
        _check_classes(outputs, data, splits)
    count = config.batch_size
    trained, batch = _outputs(trainer, trainer.model, data, count), batch_shapes(data.train, count)
    _check_values("loss", smoothed(trainer.loss, config.label_smoothing), trained, batch, count)
    if isinstance(trainer.metric, WholeSplit):
        for split in (data.validation, data.test):
            _try(trainer.metric, outputs, split)
        return
    _check_values("metric", trainer.metric, trained, batch, count)
    for split in (data.validation, data.test):
        _check_values("metric", trainer.metric, outputs, batch_shapes(split, ITEMS, image=False), ITEMS)


def _check_optimizer(trainer: Trainer, config: TrainConfig) -> None:
    """Raises CwpsError for an optax transformation that needs more arguments than a step has."""
    given = config.optimizer
    if not isinstance(given, optax.GradientTransformation):
        return
    shapes = {**trainer.layout.backbone_shapes, **dict(trainer.layout.head)}
    params = unflatten({path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()})
    try:
        jax.eval_shape(lambda params: given.update(params, given.init(params), params), params)
    except MISFITS as error:
        raise CwpsError(
            "config.optimizer: a step gives it gradients, its state and the parameters, and it cannot be "
            f"applied to this model's by these ({_one_line(error)}); give another transformation"
        ) from error


def _outputs(trainer: Trainer, model: nn.Module, data: TaskData, count: int) -> Any:
    """Returns the shapes of a model's outputs for a number of images, one array or a tree of them."""
    inputs = inputs_of(model, batch_shapes(data.train, count))

    def look() -> tuple[Any, nn.Module]:
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        with calling(model, inputs):
            outputs, variables = jax.eval_shape(
                lambda inputs: model.init_with_output(keys, inputs, **mode(model, train=False)), inputs
            )
        _check_same_model(trainer, nn.meta.unbox(variables)["params"])
        for leaf in jax.tree.leaves(outputs):
            if leaf.shape[:1] != (count,):
                hint = "; add a channel axis by images[..., None]" if len(data.train.image.shape) == 2 else ""
                raise CwpsError(
                    f"the model gives outputs {leaf.shape} for images {_told(inputs)}: must be one per "
                    f"image, ({count}, ...){hint}"
                )
        if trainer.parallel.axis_name is None:  # pmap has an axis, which the model may know
            _check_training(model, inputs, nn.meta.unbox(variables))
        return outputs, model  # kept, so that no other one gets its id

    return trainer.network.remembered(("outputs", id(model), *jax.tree.leaves(inputs)), look)[0]


def _check_training(model: nn.Module, inputs: Any, variables: Any) -> None:
    """Raises CwpsError for a model that cannot be applied in training mode."""
    params, other = variables["params"], {key: tree for key, tree in variables.items() if key != "params"}

    def train(params: Any, other: Any, inputs: Any) -> Any:
        keys = random_keys(jax.random.key(0))
        return apply_model(model, params, other, inputs, train=True, mutable=True, rngs=keys)

    try:
        jax.eval_shape(train, params, other, inputs)
    except NameError as error:
        raise CwpsError(
            f"the model averages over an axis that is not there ({_one_line(error)}): build it without "
            "axis_name, since a compiled step sees the whole batch"
        ) from error


def _check_same_model(trainer: Trainer, params: Any) -> None:
    ours = {path: tuple(leaf.shape) for path, leaf in flatten(params).items()}
    backbone, head = trainer.layout.backbone_shapes, dict(trainer.layout.head)
    theirs = {**backbone, **head}
    for path in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(path), theirs.get(path)
        if one == other:
            continue
        smaller = one and other and len(one) == len(other) and all(map(int.__le__, one, other))
        if not (path in head and smaller):
            raise CwpsError(
                f"the trainer was made for another model, or for images of another size: {path} is "
                f"{other or 'none'} there and {one or 'none'} here; make one by make_trainer"
            )


def _check_classes(outputs: Any, data: TaskData, splits: Mapping[str, Split]) -> None:
    shapes = [leaf.shape for leaf in jax.tree.leaves(outputs)]
    if len(shapes) != 1 or len(shapes[0]) != 2:
        raise CwpsError(
            f"the model gives outputs {', '.join(map(str, shapes))} for {ITEMS} images: the default loss and "
            "metric take (images, classes); give a loss and a metric of your own"
        )
    count = shapes[0][1]
    if (data.classes or 0) > count:
        raise CwpsError(
            f"the model has {count} outputs, the data {data.classes} classes: give the model's head as many"
        )
    for name, split in splits.items():
        check_labels(split.fields, count, name)


def _check_inputs(model: nn.Module, splits: Mapping[str, Split]) -> None:
    """Raises CwpsError unless all splits have the model's other inputs in one form, and finite."""
    names = [name for name in input_names(model) if name != "image"]
    forms: dict[str, str] = {}
    for where, split in splits.items():
        check_inputs(model, {*split.fields, "image"}, f"{where} data")
        for name in names:
            field = split.fields[name]
            form = f"{field.shape[1:]} {field.dtype}"
            if forms.setdefault(name, form) != form:
                raise CwpsError(f"{where} {name!r} is {form} per item, train {forms[name]}: give it one form")
            if wrong := not_finite(field):
                raise CwpsError(f"{where} {name!r} {wrong[0]} has a value that is {wrong[1]}: repair it")
    if names and splits["train"].preparation.group > 1:
        raise CwpsError(
            f"mixup and cutmix blend images alone, and the model takes {names[0]!r} too: set both to 0"
        )


def batch_shapes(split: Split, count: int, *, image: bool = True) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and types of a batch of a number of items, as on the device.

    Args:
        split: the items.
        count: their number.
        image: whether the image is included.
    """
    fields = {name: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for name, leaf in split.fields.items()}
    one = {**fields, "image": split.image} if image else fields
    return {
        name: jax.ShapeDtypeStruct((count, *leaf.shape), jax.dtypes.canonicalize_dtype(leaf.dtype))
        for name, leaf in one.items()
    }


def _check_values(what: str, function: Callable[..., Any], outputs: Any, batch: Any, count: int) -> None:
    try:
        values = jax.eval_shape(function, outputs, batch)
    except MISFITS as error:
        marked = "; mark one in NumPy by cwps.whole_split" if what == "metric" else ""
        raise CwpsError(
            f"the {what} cannot be computed of outputs {_told(outputs)} and a batch of {_told(batch)}: "
            f"{_one_line(error)}{marked}"
        ) from error
    shape = getattr(values, "shape", None)
    if shape == (count,):
        return
    remedy = "take the mean over all axes but the first"
    if shape == ():
        remedy = "leave the mean over the batch to the trainer"
    elif shape == (count, count):
        remedy = f"({count}, 1) and ({count},) were combined: give both one shape, as by outputs[:, 0]"
    came = type(values).__name__ if shape is None else shape
    raise CwpsError(
        f"the {what} gives {came} for {count} items: must be one value per item, ({count},); {remedy}"
    )


def _try(metric: WholeSplit, outputs: Any, split: Split) -> None:
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda leaf: rng.standard_normal((len(split), *leaf.shape[1:]), np.float32), outputs)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes that random outputs happen to miss
            measure(metric, drawn, split)
    except CwpsError:
        raise
    except MISFITS as error:
        raise CwpsError(
            f"the metric cannot be computed of outputs {_told(drawn)} and {_told(dict(split.fields))}: "
            f"{_one_line(error)}"
        ) from error


def _told(tree: Any) -> str:
    if isinstance(tree, Mapping):
        return ", ".join(f"{name} {_told(leaf)}" for name, leaf in tree.items())
    return ", ".join(str(tuple(leaf.shape)) for leaf in jax.tree.leaves(tree))


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
