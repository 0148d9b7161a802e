"""`RunConfig`: a run of main, its tasks in their order, and what is different for one of them."""

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from cwps_jax.config.checks import at_least, within
from cwps_jax.config.data import DataConfig
from cwps_jax.config.train import TrainConfig
from cwps_jax.errors import CwpsError

Compared = Literal["finetune", "probe"]

# One for all tasks: they share a backbone, its compiled steps, and what was read of the data.
SHARED = (
    "parallel",
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
        overrides: {task: {key: value}}, what is different for single tasks: any key of `TrainConfig` or
            `DataConfig` but those that all tasks share (see `SHARED`).
        source: task on which the pre-trained model is trained, where there is no `weights`.
        source_epochs: epochs for it.
        weights: a file with the pre-trained model's weights, instead of `source`; see `load_backbone`.
        stochastic_depth: share of images that skip the last block's branch in training.
        remat: whether activations are computed again in the backward pass, to save memory.
        compare: methods that every task is trained by as well, for comparison: "finetune", "probe".
        draws: independent runs with the seeds from `seed` on, each in a folder of its own in the workdir;
            results.json then gives means and deviations over them.
        least_steps: fewest training steps of a task; epochs are added where its data give fewer.
        compilation_cache: folder of compiled programs that later runs reuse; "" for none.
        profile: whether a few steps of each stage are traced, the first time that it is trained, and what a
            step costs is written down: see profile/ in the workdir.
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
    compare: tuple[Compared, ...] = ("finetune", "probe")
    draws: int = 1
    least_steps: int = 0
    compilation_cache: str = "~/.cache/cwps_jax"
    profile: bool = False

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        DataConfig.__post_init__(self)
        at_least(self, source_epochs=1, draws=1, least_steps=0)
        within(self, 0, 1, "stochastic_depth")
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
        for name in self.overrides:
            self.for_task(name)

    @property
    def train(self) -> TrainConfig:
        """The part of it that `learn_task` takes."""
        return TrainConfig(**self._part(TrainConfig))

    @property
    def images(self) -> DataConfig:
        """The part of it that says where a task's images come from."""
        return DataConfig(**self._part(DataConfig))

    def for_task(self, task: str) -> "RunConfig":
        """Returns the config with what is different for a task.

        Raises:
            CwpsError: what is given for it is no config of a task.
        """
        given = self.overrides.get(task, {})
        where = f"overrides.{task}"
        if not isinstance(given, Mapping):
            raise CwpsError(f"config.{where} = {given!r}: must be keys and values")
        known = [key for key in (*_names(TrainConfig), *_names(DataConfig)) if key not in SHARED]
        for key in given:
            if key in _names(RunConfig) and key not in known:
                raise CwpsError(f"config.{where}.{key}: all tasks share it; set config.{key}")
            if key not in known:
                raise CwpsError(unknown_key(key, known, f"{where}."))
        try:
            return dataclasses.replace(self, **_values(given), overrides={})
        except CwpsError as error:
            raise CwpsError(f"config.overrides.{task}: {error}") from error

    def _part(self, part: type) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _names(part)}


def default_config() -> Any:
    """Returns an `ml_collections.ConfigDict` with every key of `RunConfig` at its default.

    A config file sets what it wants in it; a key that is not known is refused by `run_config`.
    """
    from ml_collections import config_dict

    values = {
        field.name: {} if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(RunConfig)
    }
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
    known = _names(RunConfig)
    for key in values:
        if key not in known:
            raise CwpsError(unknown_key(key, known))
    return RunConfig(**_values(values))


def unknown_key(key: str, known: Iterable[str], where: str = "") -> str:
    """Returns the line that refuses an unknown config key, with the nearest known one."""
    near = difflib.get_close_matches(key, list(known), 1, 0.5)
    return f"config.{where}{key} is not known" + (f"; did you mean config.{where}{near[0]}?" if near else "")


def _names(part: type) -> list[str]:
    return [field.name for field in dataclasses.fields(typing.cast(Any, part))]


def _values(given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
