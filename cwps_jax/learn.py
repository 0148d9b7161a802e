"""`learn_task`: learn one task by a sharing method and store it. main is a thin caller."""

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
        variables: the plain model's variables.
        metric: on the test set (accuracy by default).
        validation_metric: on the validation set.
        reached: what has been trained now on the validation set; another where a better version was kept.
        params_ratio: what the task keeps, without its head, over the backbone's parameters.
        relation: {owner: share of the task's channels}, weighted by parameters; empty for a task that is not
            stored as channels.
        record: all that was measured, as it stands in the pool's index.
        stored: what the pool stores of it, counted.
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
        """A table of what was reached and what is kept, as a notebook shows it."""
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
        pool: the stored models. What is stored of earlier tasks is read and never changed.
        name: the task's name.
        model: a Linen model whose backbone is the pool's, with the task's own head, in `Inputs` where it does
            not take an image alone; see `Pool.model` for what a method may make of it.
        data: the task's data. Choices are made on validation data; the test data is read at the end.
        loss: (outputs, batch) to one loss per item, (batch,); cross-entropy by default.
        metric: the same, better when larger, or one of a `whole_split`, or a name: "accuracy", the default,
            "macro_f1", "mean_iou" or "mean_average_precision". The record keeps its name.
        config: how to learn.
        trainer: shares compiled steps with other tasks, and brings its own loss and metric; its model may
            have a larger head, of which the leading outputs are used. By default one is made.
        observe: called once an epoch with a `Progress`; by default a bar shows it on a terminal or in a
            notebook, and nothing is shown in a pipe or a log.
        notes: plain JSON that is stored with the record.
        relearn: whether a task that is there is learned anew, as its next version; nothing is taken from its
            earlier ones, which stay as they are. "better" stores it only where it is better on the validation
            set than its newest version is.
        checkpoints: a folder, or a `Saving`: the training is saved there every few minutes, goes on from
            there when the same is called again, and is removed when the task is stored.

    Returns:
        The task as it is now in the pool; `pool.effective(name)` gives the same variables in any later
        process.

    Raises:
        CwpsError: the name is taken, impossible or being learned by another process, the model's backbone is
            not the pool's, the budget cannot be met, or the data does not fit.
        FloatingPointError: training diverged.
        Preempted: `Saving.stopping` said so, and the training has been saved.
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
        without: a task of the pool of which nothing is taken.
        saves: the saved points of this training.

    Returns:
        What the trainer found, what there is to store of it, and the variables that these give, with the head
        in the model's own size.
    """
    if trainer.parallel.shard != config.shard:
        raise CwpsError(f"config.shard = {config.shard!r}: the trainer was made for another; make one anew")
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
        stored = pool.coded(stored, own.row_bits, own.byte_budget)
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
    """Returns a trainer for a model, made to the shape of the data's images.

    Args:
        model: a Linen model with its head.
        data: of any of its tasks.
        loss: see `learn_task`.
        metric: see `learn_task`.
        config: of any of its tasks; `head`, `private` and `parallel` matter.
        profiler: looks at a few steps of every stage.

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
    """Returns shape and type of what a model is called with for a batch of one item."""
    check_inputs(model, {*data.train.fields, "image"}, "train data")
    return inputs_of(model, batch_shapes(data.train, 1))


def composite_parent(
    child: Tree, pool: Pool, search: Search = Search()
) -> tuple[dict[str, Any], dict[str, Source]]:
    """Returns the composite parent of a child, and where each of its channels came from (CPMS).

    Args:
        child: nested dict, the (briefly trained) child's parameters.
        pool: the stored models.
        search: how to compare.

    Returns:
        The parent, a nested dict of the layers' leaves, and {path of a kernel: `Source`}, whose `model`
        counts ``pool.pooled().names``.
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
