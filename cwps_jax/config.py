"""`RunConfig`: a run of main, its tasks in their order, and the settings of single tasks."""

import dataclasses
import typing
import unicodedata
from collections.abc import Mapping
from typing import Any, Literal

from cwps_jax import methods
from cwps_jax.errors import CwpsError
from cwps_jax.settings import DataConfig, TrainConfig, check_task_name, nearest, unknown_key
from cwps_jax.settings.checks import at_least, within

__all__ = ["DataConfig", "RunConfig", "TrainConfig", "default_config", "known_keys", "run_config"]

METRICS = ("tensorboard", "jsonl", "wandb", "mlflow")
# One for all tasks: they share a backbone, its compiled steps, and what was read of the data.
SHARED = (
    "parallel",
    "shard",
    "head",
    "private",
    "image_size",
    "seed",
    "cache",
    "cache_gigabytes",
    "cache_dir",
    "method",
)


@dataclasses.dataclass(frozen=True)
class RunConfig(TrainConfig, DataConfig):
    """A run of main: the pre-trained model, the tasks in their order, and how each is learned.

    Attributes:
        backbone: name of the backbone.
        dtype: compute dtype, "float32" or "bfloat16"; parameters are float32.
        tasks: names of the tasks, in the order in which they are learned.
        overrides: settings that are different for single tasks, as {task: {key: value}}. It may have any key
            of `TrainConfig` or `DataConfig` except those that all tasks share (see `SHARED`), and settings
            of methods, as in
            ``{"birds": {"cwps": {"lambda_": 0.3}}}``.
        source: task on which the pre-trained model is trained, if `weights` is empty.
        source_epochs: epochs for training the pre-trained model on `source`.
        weights: a file with the pre-trained model's weights, instead of `source`; see `load_backbone`.
        stochastic_depth: share of images that skip the last block's branch in training.
        remat: whether activations are computed again in the backward pass, to save memory.
        settings: {name of a method: the method}; the keys ``config.<method>.<setting>`` of main's config.
        compare: names of methods that every task is trained by as well, for comparison.
        keep_compared: whether the compared models are stored in the pool too, as "<task>+<method>".
        relearn: names of stored tasks that are learned again, each as its next version.
        rounds: how many times the run learns every task. From the second time on, each task is learned again
            with the others' newest models in its pool. The new model is stored as the next version if it is
            better on the validation set.
        draws: number of independent runs, with the seeds from `seed` on. Each has a folder of its own in the
            workdir, and results.json has the rows of all of them.
        least_steps: fewest training steps of a task; epochs are added if its data give fewer.
        metric: the metric for choices on validation data and for tables. All except "accuracy" are computed
            over a whole split by scikit-learn: "macro_f1", "mean_iou", "mean_average_precision".
        metrics: places for the numbers of every epoch: tensorboard, jsonl, wandb, mlflow. See
            docs/metrics.md.
        save_minutes: minutes from one save of a task's training to the next; 0 means no saves. Saves are in
            saves/ in the workdir, and the same command resumes from the newest. At the default a kill costs 5
            minutes on average. The time for saving is in docs/performance.md.
        compilation_cache: folder of compiled programs that later runs reuse; "" for none.
        profile: whether a few steps of each stage are traced and their cost is written to profile/. The
            folder is in the workdir, and each stage is traced the first time that it is trained.
    """

    backbone: str = "resnet8"
    dtype: Literal["float32", "bfloat16"] = "float32"
    tasks: tuple[str, ...] = ()
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    source: str = ""
    source_epochs: int = 30
    weights: str = ""
    stochastic_depth: float = 0.0
    remat: bool = False
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    compare: tuple[str, ...] = ("finetune", "probe")
    keep_compared: bool = False
    relearn: tuple[str, ...] = ()
    rounds: int = 1
    draws: int = 1
    least_steps: int = 0
    metric: Literal["accuracy", "macro_f1", "mean_iou", "mean_average_precision"] = "accuracy"
    metrics: tuple[str, ...] = ("tensorboard", "jsonl")
    save_minutes: float = 10.0
    compilation_cache: str = "~/.cache/cwps_jax"
    profile: bool = False

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        DataConfig.__post_init__(self)
        at_least(self, source_epochs=1, rounds=1, draws=1, least_steps=0, save_minutes=0)
        within(self, "config.", 0, 1, "stochastic_depth")
        if not self.tasks:
            raise CwpsError("config.tasks is empty: name at least one task")
        for name in self.tasks:
            check_task_name(name, "config.tasks")
            spelled = unicodedata.normalize("NFC", name)
            if [unicodedata.normalize("NFC", one) for one in self.tasks].count(spelled) > 1:
                how = "" if self.tasks.count(name) > 1 else ", in both Unicode spellings of its accents"
                raise CwpsError(f"config.tasks names {name!r} twice{how}: a task is learned once in a run")
        self._check_methods()
        for name in self.metrics:
            if name not in METRICS:
                near = nearest(name, METRICS)
                told = f"; did you mean {near!r}?" if near else ""
                raise CwpsError(f"config.metrics names {name!r}, not one of {', '.join(METRICS)}{told}")
        if not self.source and not self.weights:
            raise CwpsError(
                "config.source and config.weights are both empty: name a task to pre-train on, or a file"
            )
        for name in self.relearn:
            if name not in self.tasks:
                raise CwpsError(f"config.relearn names {name!r}, which is not in config.tasks")
        if self.rounds > 1 and not methods.METHODS[self.method].borrows:
            raise CwpsError(
                f"config.rounds = {self.rounds}: {self.method} takes no channels of other tasks, so that it "
                "would learn each task the same again; set it to 1"
            )
        if self.rounds > 1 and self.relearn:
            raise CwpsError(
                f"config.rounds = {self.rounds} and config.relearn: a round cannot be started again; learn "
                "the tasks again first, with config.rounds=1"
            )
        for name in self.overrides:
            self.for_task(name)

    @property
    def train(self) -> TrainConfig:
        """The `TrainConfig` for `learn_task`, with the settings of the run's method."""
        return self.train_by(self.method)

    def train_by(self, method: str) -> TrainConfig:
        """Returns the `TrainConfig` for `learn_task`, for one of the run's methods."""
        chosen = self.settings.get(method) or methods.find(method)()
        return TrainConfig(**{**self._part(TrainConfig), "method": chosen})

    @property
    def images(self) -> DataConfig:
        """The `DataConfig` of a task."""
        return DataConfig(**self._part(DataConfig))

    def for_task(self, task: str) -> "RunConfig":
        """Returns the config with the settings of one task.

        Raises:
            CwpsError: its settings in `overrides` are not those of a task.
        """
        given = self.overrides.get(task, {})
        where = f"overrides.{task}"
        if not isinstance(given, Mapping):
            raise CwpsError(f"config.{where} = {given!r}: must be keys and values")
        known = [key for key in (*_names(TrainConfig), *_names(DataConfig)) if key not in SHARED]
        for key in given:
            if key in _names(RunConfig) and key not in known:
                raise CwpsError(f"config.{where}.{key}: all tasks share it; set config.{key}")
            if key not in known and key not in methods.METHODS:
                raise CwpsError(unknown_key(key, known, f"{where}."))
        try:
            of_methods, values = _split(given)
            settings = {
                name: methods.with_settings(name, {**_plain(self.settings.get(name)), **changes})
                for name, changes in of_methods.items()
            }
            return dataclasses.replace(self, **values, settings={**self.settings, **settings}, overrides={})
        except CwpsError as error:
            raise CwpsError(f"config.overrides.{task}: {error}") from error

    def _check_methods(self) -> None:
        for name in (self.method, *self.compare):
            methods.find(name)
        for name in self.compare:
            if self.compare.count(name) > 1:
                raise CwpsError(
                    f"config.compare = {self.compare}: names {name!r} twice; name each method once"
                )
            if methods.METHODS[name].uses_own_tasks and not self.keep_compared:
                raise CwpsError(
                    f"config.compare: {name} builds on what it stored of earlier tasks; set "
                    "config.keep_compared=true"
                )
        for name, chosen in self.settings.items():
            if name not in (self.method, *self.compare) and chosen != methods.find(name)():
                raise CwpsError(
                    f"config.{name}: settings of a method that this run does not use; it uses "
                    f"{', '.join((self.method, *self.compare))}: name it in config.compare, or leave them out"
                )

    def _part(self, part: type) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _names(part)}


def default_config() -> Any:
    """Returns an `ml_collections.ConfigDict` with every key of `RunConfig` and of each method at its default.

    A config file changes the values of keys; `run_config` refuses a key that is not known.
    """
    from ml_collections import config_dict

    known_keys()  # that no method is called like one
    values: dict[str, Any] = {
        field.name: {} if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(RunConfig)
        if field.name != "settings"
    }
    for name, method in methods.METHODS.items():
        values[name] = _plain(method())
    return config_dict.ConfigDict(values)


def run_config(values: Mapping[str, Any]) -> RunConfig:
    """Returns the checked config of a run from plain values.

    Raises:
        CwpsError: unknown key (with the nearest known one), wrong type, or a value out of range.
    """
    known = known_keys()
    for key in values:
        if key not in (*_names(RunConfig), *methods.METHODS) or key == "settings":
            raise CwpsError(unknown_key(key, known))
    of_methods, own = _split(values)
    settings = {name: methods.with_settings(name, given) for name, given in of_methods.items()}
    return RunConfig(**own, settings=settings)


def known_keys() -> list[str]:
    """Returns every key of main's config: of `RunConfig`, and of each method as "<method>.<setting>".

    Raises:
        CwpsError: a method is registered under the name of a key.
    """
    own = [name for name in _names(RunConfig) if name != "settings"]
    for name in methods.METHODS.keys() & set(_names(RunConfig)):
        raise CwpsError(f"a method cannot be called {name!r}: config.{name} is a key of its own")
    return [*own, *(f"{name}.{key}" for name, method in methods.METHODS.items() for key in _names(method))]


def _split(given: Mapping[str, Any]) -> tuple[dict[str, Mapping[str, Any]], dict[str, Any]]:
    """Returns the settings of methods and the other values."""
    for name in given.keys() & methods.METHODS.keys():
        if not isinstance(given[name], Mapping):
            raise CwpsError(f"config.{name} = {given[name]!r}: must be keys and values")
    of_methods = {name: given[name] for name in methods.METHODS if name in given}
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    return of_methods, {key: value for key, value in values.items() if key not in of_methods}


def _plain(method: Any) -> dict[str, Any]:
    return {field.name: getattr(method, field.name) for field in dataclasses.fields(method)} if method else {}


def _names(part: type) -> list[str]:
    return [field.name for field in dataclasses.fields(typing.cast(Any, part))]
