"""`learn_task` learns one task by a sharing method and stores it; main is a thin caller of it."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn

from cwps_jax import methods
from cwps_jax.core.accounting import Count
from cwps_jax.core.heads import without_head
from cwps_jax.core.trees import Tree, check_params, unite
from cwps_jax.data.task import TaskData
from cwps_jax.errors import CwpsError
from cwps_jax.inputs import check_inputs, inputs_of
from cwps_jax.methods.method import Stored
from cwps_jax.modules import channel_layout
from cwps_jax.parallel import Parallel
from cwps_jax.profiling import Profiler
from cwps_jax.provenance import KEY, learned_with
from cwps_jax.recorded import measured, smallest_good
from cwps_jax.saved import Checkpoints, forget, saves_of_task
from cwps_jax.search.composite import Search, Source, composite
from cwps_jax.settings import TrainConfig, check_task_name
from cwps_jax.store.listing import html_table
from cwps_jax.store.pool import PRETRAINED, Pool
from cwps_jax.train.curve import hardened
from cwps_jax.train.heads import cut_to_model, with_kept_head
from cwps_jax.train.meeting import batch_shapes, calling, check_given, check_meeting
from cwps_jax.train.named_metrics import find_metric
from cwps_jax.train.objectives import Metric, Objective, cross_entropy
from cwps_jax.train.records import Observe, Trained, unobserved
from cwps_jax.train.saves import Saves
from cwps_jax.train.trainer import Trainer
from cwps_jax.train.watched import watched


@dataclasses.dataclass(frozen=True)
class LearnedTask:
    """A task that has been learned and stored.

    Attributes:
        name: "birds@1", as the pool knows it.
        variables: the plain model's variables, {collection: nested dict of float32 arrays}.
        metric: the metric on the test set (by default the accuracy, in [0, 1]).
        validation_metric: the metric of the stored version on the validation set.
        reached: the metric of the model that was trained now on the validation set; it differs from
            `validation_metric` if an older version was better and was kept.
        params_ratio: number of parameters that the task keeps, without its head, over the backbone's
            parameters.
        relation: {owner: share of the task's channels}, weighted by parameters; empty for a task that is not
            stored as channels.
        record: all measurements, as in the pool's index; plain JSON.
        stored: counts of the parameters, bits and bytes that the pool stores of it.
    """

    name: str
    variables: Mapping[str, Any]
    metric: float
    validation_metric: float
    reached: float
    params_ratio: float
    relation: Mapping[str, float]
    record: Mapping[str, Any]
    stored: Count

    def _repr_html_(self) -> str:
        """Returns the table of the results and of the stored parameters that a notebook shows."""
        shares = ", ".join(f"{owner} {share:.1%}" for owner, share in self.relation.items())
        row = (f"{self.metric:.3f}", f"{self.validation_metric:.3f}", f"{self.params_ratio:.1%}", shares)
        name = self.record["metric"]
        titles = (f"test {name}", f"validation {name}", "kept", "channels stored by")
        return html_table(self.name, titles, [row])


def learn_task(
    pool: Pool,
    name: str,
    model: nn.Module,
    data: TaskData,
    *,
    loss: Objective | None = None,
    metric: Metric | str | None = None,
    config: TrainConfig = TrainConfig(),
    trainer: Trainer | None = None,
    observe: Observe | None = None,
    notes: Mapping[str, Any] | None = None,
    relearn: bool | Literal["better"] = False,
    checkpoints: Checkpoints | None = None,
) -> LearnedTask:
    """Learns a task in all its stages, measures it, and adds it to the pool.

    Args:
        pool: the stored models. Earlier tasks are read and never changed.
        name: the task's name.
        model: a Linen model with the backbone of the pool and the task's own head; in `Inputs` if it takes
            more than an image. A method may wrap it, see `Pool.model`.
        data: the task's data. Choices are made on validation data; the test data is read at the end.
        loss: a function of (outputs, batch) that returns one loss per item, (batch,); by default the
            cross-entropy.
        metric: a function like `loss` whose values are better when larger, a metric of `whole_split`, or a
            name: "accuracy" (the default), "macro_f1", "mean_iou" or "mean_average_precision". The record
            keeps its name.
        config: the settings of training.
        trainer: a trainer that other tasks use too, so that they share compiled steps. It has its own loss
            and metric. Its model may have a larger head, of which the first outputs are used. By default a
            new trainer is made.
        observe: called once per epoch with a `Progress`. By default a terminal or a notebook shows a bar, and
            a pipe or a log shows nothing.
        notes: plain JSON that is stored with the record.
        relearn: whether a task that is already stored is learned again, as its next version. Its earlier
            versions stay as they are, and no channels are taken from them. "better" stores the new version
            only if it is better on the validation set than the newest one.
        checkpoints: a folder, or a `Saving`. The training is saved there every few minutes and resumes from
            there when the same call is made again. The saves are removed when the task is stored.

    Returns:
        The task as it is now in the pool; `pool.effective(name)` returns the same variables in any later
        process.

    Raises:
        CwpsError: the name is taken, is not allowed, or is being learned by another process; the model's
            backbone is not the pool's; the budget cannot be met; or the data do not fit.
        FloatingPointError: a loss or a parameter is not finite.
        Preempted: `Saving.stopping` asked the training to stop, and it has been saved.
    """
    check_given(data, config)
    check_task_name(name)
    if trainer is None:
        trainer = make_trainer(
            model, data, loss=loss or cross_entropy, metric=metric or "accuracy", config=config
        )
    elif loss not in (None, trainer.loss) or (metric and find_metric(metric) is not trainer.metric):
        raise CwpsError("the trainer was made for another loss or metric; give them to make_trainer alone")
    with pool.learning(name):
        trainer.parallel.connect()  # all processes have just met there
        if name in pool.tasks and not relearn:
            raise CwpsError(f"task {name!r} is in the pool already; choose another name, or relearn=True")
        given = dict(notes or {})
        if KEY not in given:  # a run has looked through the data already
            given[KEY] = learned_with(name, data, config)
        saves = saves_of_task(checkpoints, pool, name, model, given[KEY])
        with watched(name) if observe is None else contextlib.nullcontext(observe) as seen:
            trained, stored, variables = train_task(pool, model, data, config, trainer, seen, name, saves)
        record = {**measured(trained, variables, model, data, config, trainer), **given}
        reached = record["validation_accuracy"]
        kept = pool.version(name) if relearn == "better" and name in pool.tasks else None
        if kept and reached <= kept.record["validation_accuracy"]:
            version, record, variables = kept, dict(kept.record), pool.effective(name)
        else:
            version = pool.add_stored(name, trained.method, stored, record)
        forget(checkpoints, name)
    count = pool.count(version.name)
    return LearnedTask(
        name=version.name,
        variables=variables,
        metric=record["accuracy_when_learned"],
        validation_metric=record["validation_accuracy"],
        reached=reached,
        params_ratio=count.ratio,
        relation=pool.relation(version.name) if pool.shares_channels(version.name) else {},
        record=record,
        stored=count,
    )


def train_task(
    pool: Pool,
    model: nn.Module,
    data: TaskData,
    config: TrainConfig,
    trainer: Trainer,
    observe: Observe = unobserved,
    without: str | None = None,
    saves: Saves | None = None,
) -> tuple[Trained, Stored, dict[str, Any]]:
    """Trains a task from the pre-trained model by the config's method and stores nothing.

    Args:
        pool, model, data, config, trainer, observe: see `learn_task`.
        without: a task of the pool from which no channels are taken.
        saves: the saved points of this training.

    Returns:
        The trained network, the arrays to store of it, and the variables that are restored from these, with
        the head in the model's own size.
    """
    if trainer.parallel.shard != config.shard:
        raise CwpsError(f"config.shard = {config.shard!r}: the trainer was made for another; make a new one")
    if trainer.parallel.mode != config.parallel:
        raise CwpsError(
            f"config.parallel = {config.parallel!r}: the trainer was made for {trainer.parallel.mode!r}"
        )
    _check_same_backbone(pool, trainer)
    check_meeting(trainer, model, data, config)
    method = methods.resolve(config.method)
    example = _example(model, data)
    start = pool.effective(PRETRAINED)
    # The stored head is another task's: only its backbone is the start, unless told otherwise.
    head = trainer.new_head(config.seed)
    if config.keep_head:
        head = with_kept_head(head, start, model, example)
    start = unite(without_head(pool.layout, start), head)
    pooled, found = pool.pooled(without, method.name), []
    for own, trained in hardened(trainer, start, data.train, config, pooled, observe, saves):
        stored = method.store(trained.finished)
        other = cut_to_model({"params": stored.own["params"], **stored.own.get("other", {})}, model, example)
        cut = {"params": other.pop("params"), **({"other": other} if other else {})}
        stored = dataclasses.replace(stored, own={**stored.own, **cut})
        stored = pool.coded(stored, own.row_bits, own.byte_budget, trainer.network.folding)
        found.append((trained, stored, pool.restored(method, stored)))
    return found[0] if len(found) == 1 else smallest_good(found, model, data, config, trainer)


def make_trainer(
    model: nn.Module,
    data: TaskData,
    *,
    loss: Objective = cross_entropy,
    metric: Metric | str = "accuracy",
    config: TrainConfig = TrainConfig(),
    profiler: Profiler | None = None,
) -> Trainer:
    """Returns a trainer for a model and images of the data's shape.

    Args:
        model: a Linen model with its head.
        data: the data of any of its tasks.
        loss: see `learn_task`.
        metric: see `learn_task`.
        config: the config of any of its tasks; only `head`, `private` and `parallel` matter.
        profiler: traces and times a few steps of every stage.

    Raises:
        CwpsError: the model has no channels to share, or no head.
    """
    check_given(data, config)
    metric = find_metric(metric)
    example = _example(model, data)
    with calling(model, example):
        layout = channel_layout(model, example, head=config.head, private=config.private)
    if not layout.layers:
        raise CwpsError("the model has no layer with output channels outside its head: nothing to share")
    if not layout.head:
        raise CwpsError(f"the model has no module {config.head!r}: name its head by config.head")
    parallel = Parallel(config.parallel, shard=config.shard)
    return Trainer(model, layout, example, loss=loss, metric=metric, parallel=parallel, profiler=profiler)


def _example(model: nn.Module, data: TaskData) -> Any:
    """Returns the shapes and types with which a model is called for a batch of one item."""
    check_inputs(model, {*data.train.fields, "image"}, "train data")
    return inputs_of(model, batch_shapes(data.train, 1))


def composite_parent(
    child: Tree, pool: Pool, search: Search = Search()
) -> tuple[dict[str, Any], dict[str, Source]]:
    """Returns the composite parent of a child, and the source of each of its channels (CPMS, METHOD stage 2).

    Args:
        child: nested dict of float arrays, the parameters of the (briefly trained) child.
        pool: the stored models.
        search: the settings of the search.

    Returns:
        The parent, a nested dict of the layers' leaves (float32, NumPy), and {path of a kernel: `Source`},
        whose `model` is an index into ``pool.pooled().names``.
    """
    check_params(child, "composite_parent(child, pool): the child")
    return composite(pool.layout, child, pool.pooled().models, search)


def _check_same_backbone(pool: Pool, trainer: Trainer) -> None:
    ours, theirs = trainer.layout, pool.layout
    if (ours.layers, ours.private) == (theirs.layers, theirs.private):
        return
    shapes, stored = ours.backbone_shapes, theirs.backbone_shapes
    differing = sorted(path for path in shapes.keys() | stored.keys() if shapes.get(path) != stored.get(path))
    if not differing:
        where = min(set(ours.private_paths) ^ set(theirs.private_paths))
        raise CwpsError(
            f"{pool.folder}: {where} is private in the pool or in this model, but not in both; give the "
            "private patterns with which the pool was made"
        )
    where = differing[0]
    raise CwpsError(
        f"{pool.folder}: its backbone differs from this model at {where} "
        f"({stored.get(where, 'none')} stored, {shapes.get(where, 'none')} here); use the same backbone, "
        "or another pool"
    )
