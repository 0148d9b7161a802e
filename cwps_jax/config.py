"""What can be set, with its default and its check: for one task (`TrainConfig`) and for a run of main."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from cwps_jax.core.masks import MAX_TEMPERATURE, Estimator
from cwps_jax.core.search import Candidates, Distance, Granularity, Search
from cwps_jax.errors import CwpsError

Compared = Literal["finetune", "probe"]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How one task is learned. `learn_task` takes it; main's config has the same keys.

    Attributes:
        method: "cwps", "finetune" (every channel its own) or "probe" (the head alone).
        epochs: epochs over all stages together.
        batch_size: images a step, over all devices.
        learning_rate: peak of the one cosine schedule that runs over all stages.
        learning_rate_warmup: share of all steps over which the rate rises from zero.
        stage_rates: factors of it in the warm-up, soft and hard stage of cwps.
        layer_decay: factor of the rate from each block of the model to the one before it, in (0, 1]: the head
            learns at the full rate, the stem slowest. Scores are left out. See `tracing.parameter_depths`.
        optimizer: "sgd" or "adamw".
        momentum: of SGD.
        weight_decay: on kernels only, times the gate of each channel.
        label_smoothing: share of each label that is spread over all classes, in [0, 1). For the default loss.
        ema: decay of the moving average of child and statistics over the last stage's steps, in [0, 1). The
            average is what the task keeps; it looks back about 1 / (1 - ema) steps. 0 is no average.
        seed: of the head's start, the data order and dropout.
        parallel: "jit" over a mesh of all devices, or "pmap".
        lambda_: weight of the sparsity penalty, in [0, 1], where there is no budget.
        budget: largest params_ratio that the task may keep, in (0, 1]. Below 1 it sets lambda, step by step;
            at 1 there is no limit.
        budget_rate: how fast lambda's base follows the budget, per unit of excess over the whole soft stage.
        budget_gain: lambda per unit of excess over the budget.
        estimator: of the gates: "annealed" sigmoid or "straight_through" threshold.
        compensate: whether the annealed gates' derivative is HAT's compensated one.
        max_temperature: s_max of the annealed gates.
        score_optimizer: "sgd", or "adam", which does not depend on how many channels there are.
        score_learning_rate: peak rate of the scores.
        warm_up_share, hard_share: shares of the epochs; the soft stage has the rest.
        norm_batches: training batches from which norm statistics are re-estimated after hardening.
        search_distance, search_granularity, search_candidates, search_z: see `core.search.Search`.
        head: name of the model's head.
        private: further patterns over paths of leaves that the task keeps for itself.
    """

    method: Literal["cwps", "finetune", "probe"] = "cwps"
    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 0.01
    learning_rate_warmup: float = 0.0
    stage_rates: tuple[float, ...] = (1.0, 1.0, 1.0)
    layer_decay: float = 1.0
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    ema: float = 0.0
    seed: int = 0
    parallel: Literal["jit", "pmap"] = "jit"
    lambda_: float = 0.5
    budget: float = 1.0
    budget_rate: float = 3.0
    budget_gain: float = 6.0
    estimator: Estimator = "annealed"
    compensate: bool = True
    max_temperature: float = MAX_TEMPERATURE
    score_optimizer: Literal["sgd", "adam"] = "adam"
    score_learning_rate: float = 0.01
    warm_up_share: float = 0.25
    hard_share: float = 0.25
    norm_batches: int = 20
    search_distance: Distance = "change"
    search_granularity: Granularity = "channel"
    search_candidates: Candidates = "aligned"
    search_z: float = 3.0
    head: str = "head"
    private: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_types(self)
        _at_least(self, epochs=1, batch_size=1, norm_batches=1)
        _at_least(self, learning_rate=0, weight_decay=0, momentum=0, score_learning_rate=0, seed=0)
        _at_least(self, budget_rate=0, budget_gain=0, max_temperature=1)
        _within(self, 0, 1, "lambda_", "learning_rate_warmup", "warm_up_share", "hard_share")
        _below_one(self, "label_smoothing", "ema")
        if len(self.stage_rates) != 3 or min(self.stage_rates) < 0:
            raise CwpsError(
                f"config.stage_rates = {self.stage_rates}: must be three factors of at least 0, for the "
                "warm-up, soft and hard stage"
            )
        if not 0 < self.layer_decay <= 1:
            raise CwpsError(
                f"config.layer_decay = {self.layer_decay}: must be above 0 and at most 1 (1 is no decay)"
            )
        if not 0 < self.budget <= 1:
            raise CwpsError(
                f"config.budget = {self.budget}: must be above 0 and at most 1, a share of the backbone's "
                "parameters (1 is no limit)"
            )
        if self.warm_up_share + self.hard_share >= 1:
            raise CwpsError(
                f"config.warm_up_share + config.hard_share = {self.warm_up_share + self.hard_share}: "
                "must be below 1, the soft stage has the rest"
            )
        if self.method == "cwps" and self.epochs < 3:
            raise CwpsError(f"config.epochs = {self.epochs}: cwps needs at least 3, one a stage")
        _ = self.search

    @property
    def search(self) -> Search:
        """The settings of the composite parent model search."""
        return Search(self.search_distance, self.search_granularity, self.search_candidates, self.search_z)


@dataclasses.dataclass(frozen=True)
class RunConfig(TrainConfig):
    """A run of main: the pre-trained model, the tasks in their order, and how each is learned.

    Attributes:
        backbone: name of the backbone.
        dtype: compute dtype, "float32" or "bfloat16"; parameters are float32.
        data: name of the data: "digits", which are embedded, or "folders" of images (see data/folders.py).
        data_dir: folder of the data, where it is not embedded.
        image_size: side of the images in pixels; 0 for that of embedded data or, for other data, of the
            backbone's published weights.
        tasks: names of the tasks, in the order in which they are learned.
        source: task on which the pre-trained model is trained, where there is no `weights`.
        source_epochs: epochs for it.
        weights: a file with the pre-trained model's weights, instead of `source`; see `load_backbone`.
        stochastic_depth: share of images that skip the last block's branch in training.
        remat: whether activations are computed again in the backward pass, to save memory.
        compare: methods that every task is trained by as well, for comparison: "finetune", "probe".
        compilation_cache: folder of compiled programs that later runs reuse; "" for none.
    """

    backbone: str = "resnet8"
    dtype: Literal["float32", "bfloat16"] = "float32"
    data: str = "digits"
    data_dir: str = ""
    image_size: int = 0
    tasks: tuple[str, ...] = ()
    source: str = ""
    source_epochs: int = 30
    weights: str = ""
    stochastic_depth: float = 0.0
    remat: bool = False
    compare: tuple[Compared, ...] = ("finetune", "probe")
    compilation_cache: str = "~/.cache/cwps_jax"

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, source_epochs=1, image_size=0)
        _within(self, 0, 1, "stochastic_depth")
        if not self.tasks:
            raise CwpsError("config.tasks is empty: name at least one task")
        for name in self.tasks:
            check_task_name(name, "config.tasks")
            if self.tasks.count(name) > 1:
                raise CwpsError(f"config.tasks names {name!r} twice: a task is learned once in a run")
        if not self.source and not self.weights:
            raise CwpsError(
                "config.source and config.weights are both empty: name a task to pre-train on, or a file"
            )

    @property
    def train(self) -> TrainConfig:
        """The part of it that `learn_task` takes."""
        names = [field.name for field in dataclasses.fields(TrainConfig)]
        return TrainConfig(**{name: getattr(self, name) for name in names})


def default_config() -> Any:
    """Returns an `ml_collections.ConfigDict` with every key of `RunConfig` at its default.

    A config file sets what it wants in it; a key that is not known is refused by `run_config`.
    """
    from ml_collections import config_dict

    values = {field.name: field.default for field in dataclasses.fields(RunConfig)}
    return config_dict.ConfigDict(values)


def check_task_name(name: str, where: str = "task") -> None:
    """Raises CwpsError for a name that cannot be a task's."""
    if name == "pretrained":
        raise CwpsError(f"{where}: 'pretrained' is the pre-trained model's own name; choose another")
    if not name or name.startswith(".") or any(c in name for c in "/\\@\0") or name != name.strip():
        raise CwpsError(
            f"{where}: {name!r} cannot be a task's name; use letters, digits, '-' and '_', no '/', '@' "
            "or leading '.'"
        )


def run_config(values: Mapping[str, Any]) -> RunConfig:
    """Returns the checked config of a run from plain values.

    Raises:
        CwpsError: unknown key (with the nearest known one), wrong type, or a value out of range.
    """
    known = [field.name for field in dataclasses.fields(RunConfig)]
    for key in values:
        if key not in known:
            raise CwpsError(unknown_key(key, known))
    settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return RunConfig(**settings)


def unknown_key(key: str, known: typing.Iterable[str]) -> str:
    """Returns the line that refuses an unknown config key, with the nearest known one."""
    near = difflib.get_close_matches(key, list(known), 1, 0.5)
    return f"config.{key} is not known" + (f"; did you mean config.{near[0]}?" if near else "")


def check_types(config: Any) -> None:
    """Raises CwpsError for the first field whose value does not have the field's type."""
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not _has_type(value, hint):
            raise CwpsError(f"config.{name} = {value!r}: must be {_describe(hint)}")


def _has_type(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin in (types.UnionType, typing.Union):
        return any(_has_type(value, one) for one in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_has_type(one, arguments[0]) for one in value)
    if hint is float:
        return isinstance(value, float | int) and not isinstance(value, bool) and value == value
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_describe(one) for one in arguments)
    if origin is tuple:
        return f"a tuple of {_describe(arguments[0])}"
    return {float: "a number", int: "a whole number", str: "a string", bool: "true or false"}.get(
        hint, "None"
    )


def _at_least(config: Any, **least: float) -> None:
    for name, bound in least.items():
        if getattr(config, name) < bound:
            raise CwpsError(f"config.{name} = {getattr(config, name)}: must be at least {bound}")


def _within(config: Any, low: float, high: float, *names: str) -> None:
    for name in names:
        if not low <= getattr(config, name) <= high:
            raise CwpsError(f"config.{name} = {getattr(config, name)}: must be in [{low}, {high}]")


def _below_one(config: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise CwpsError(f"config.{name} = {getattr(config, name)}: must be at least 0 and below 1")
