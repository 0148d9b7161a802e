"""The settings and data with which a task was learned, and how they differ from the present ones.

A stored model belongs to its classes, its images and their preparation. If these differ, its accuracy is
another quantity, and its change is not a sign of forgetting.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

import jax
import optax

from cwps_jax import methods
from cwps_jax.data.task import TaskData
from cwps_jax.errors import CwpsError
from cwps_jax.settings import TrainConfig
from cwps_jax.version import __version__

KEY = "learned_with"  # in a version's record
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
SHOWN = 3  # differences in one line
GIVEN = "given from Python"  # in the place of a setting that is no plain JSON: an optax transformation


def versions() -> dict[str, str]:
    """Returns the versions of everything that the numbers depend on, and the device."""
    return {
        "cwps_jax": __version__,
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in PACKAGES},
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }


def code_sha256() -> str:
    """Returns the SHA-256 of the package's own source files."""
    folder, sha256 = pathlib.Path(__file__).parent, hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        sha256.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return sha256.hexdigest()


def learned_with(task: str, data: TaskData, config: TrainConfig, dtype: str = "float32") -> dict[str, Any]:
    """Returns the settings and data with which a task is learned, as plain JSON.

    Args:
        task: its name, by which its data are found; it may have another name in the pool later.
        data: the task's data.
        config: the settings of its training.
        dtype: the type in which the model computes.

    Returns:
        "task"; "config": the `TrainConfig`; "images": the `DataConfig` that loaded the data, None for arrays;
        "class_names": None where there are none; "input": shape and type of one image; "preparation": what
        evaluation does to an image; "fingerprints": SHA-256 of each split; "dtype"; "versions".
    """
    method = methods.resolve(config.method)
    settings = {"name": method.name, **dataclasses.asdict(method)}
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    image = data.train.image
    told = {
        "task": task,
        "config": {**plain(dataclasses.replace(config, method="")), "method": settings},
        "images": dataclasses.asdict(data.images) if data.images else None,
        "class_names": data.class_names or None,
        "input": {"shape": image.shape, "dtype": image.dtype.name},
        "preparation": dict(data.test.evaluated_as),
        "fingerprints": {name: split.fingerprint for name, split in splits.items()},
        "dtype": dtype,
        "versions": versions(),
    }
    return json.loads(json.dumps(told))


def plain(config: Any) -> dict[str, Any]:
    """Returns a config's settings as plain JSON has them: `GIVEN` for an optax transformation.

    Args:
        config: a `TrainConfig`, or a `RunConfig`.
    """

    def told(value: Any) -> Any:
        if isinstance(value, optax.GradientTransformation):
            return GIVEN
        return {key: told(one) for key, one in value.items()} if isinstance(value, Mapping) else value

    return told(dataclasses.asdict(config))


def different_task(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Returns the differences that make a stored model's accuracy another quantity; "" if there are none.

    These are another preparation of its images, other classes, or other test data.

    Args:
        before, now: see `learned_with`; keys that one of them lacks are not compared.
    """
    keys = ("class_names", "input", "preparation", "dtype")
    found = _differences(_only(before, keys), _only(now, keys))
    if before["fingerprints"]["test"] != now["fingerprints"]["test"]:
        found.append("the test data have other contents")
    return _line(found)


def different_training(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Returns how a stored task's training differs from the present settings; "" if it does not.

    Optimizers that are given from Python cannot be compared, and are named as such.
    """
    keys = ("config",)
    found = _differences(_only(before, keys), _only(now, keys))
    if before["config"].get("optimizer") == now["config"]["optimizer"] == GIVEN:
        found.append(f"perhaps config.optimizer ({GIVEN} then and now, which cannot be compared)")
    for name in ("train", "validation"):
        if before["fingerprints"][name] != now["fingerprints"][name]:
            found.append(f"the {'training' if name == 'train' else name} data have other contents")
    return _line(found)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Returns how two mappings of plain JSON differ in the keys that both have; "" if they do not."""
    return _line(_differences(before, now))


def same_program(before: Mapping[str, Any], parallel: str) -> bool:
    """Returns whether outputs have to be the same to the bit as then: same versions, device and spreading.

    Args:
        before: see `learned_with`.
        parallel: how batches are spread over devices now.
    """
    return before["versions"] == versions() and before["config"]["parallel"] == parallel


def check_task(name: str, record: Mapping[str, Any], data: TaskData, now: Mapping[str, Any]) -> None:
    """Raises CwpsError if a stored task does not belong to the data.

    Args:
        name: the task's name.
        record: the record of its version.
        data: the present data of the task.
        now: see `learned_with`.
    """
    found = ""
    if record.get("classes") != data.classes:
        found = f"classes (was {record.get('classes')}, is {data.classes})"
    elif KEY in record:  # a version of an earlier release does not tell
        found = different_task(record[KEY], now)
    if found:
        raise CwpsError(
            f"task {name!r} is stored, and was learned with other settings or data: {found}; use these, "
            f"leave the task out of config.tasks, or learn it again: config.relearn=({name!r},)"
        )


def _only(values: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: values[key] for key in keys if key in values}


def _differences(before: Any, now: Any, where: str = "") -> list[str]:
    """Returns a text for each key that both have with different values."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return [
            text
            for key in before
            if key in now
            for text in _differences(before[key], now[key], f"{where}.{key}" if where else key)
        ]
    return [] if before == now else [f"{where.removeprefix('preparation.')} (was {before!r}, is {now!r})"]


def _line(found: list[str]) -> str:
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more
