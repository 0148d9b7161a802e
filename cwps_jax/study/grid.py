"""`Study`: the runs of a study file, a main config with grids over its keys."""

import copy
import dataclasses
import functools
import hashlib
import importlib.util
import itertools
import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from cwps_jax import methods
from cwps_jax.config import RunConfig, known_keys, run_config
from cwps_jax.errors import CwpsError
from cwps_jax.settings import unknown_key
from cwps_jax.settings.checks import check_types

MOST = 10_000  # cells that are run without being asked twice
# A cell is one run by one method: what would make several of it has no place in a study.
FIXED = {"compare": (), "draws": 1, "keep_compared": False, "relearn": (), "profile": False, "metrics": ()}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of the tasks in their order by one method.

    Attributes:
        name: name of its file, with the method, the seed, and the differences from the study's config.
        config: of the run.
        values: {swept key: value}, of all keys that any grid of the study sweeps; None for a setting of
            another method.
    """

    name: str
    config: RunConfig
    values: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Study:
    """The content of a study file: ``config.study``, and a main config.

    Attributes:
        base: the main config, an `ml_collections.ConfigDict`.
        title: title of the report.
        grids: mappings of a main config's key, such as "seed" or "cwps.granularity", to its values. Each
            grid is the product of its values; the study is the union of its grids.
        baseline: {swept key: value}; every group of cells is compared with the one that has these values and
            the same other values. Settings of methods may be nested. Empty for no comparison.
    """

    base: Any
    title: str = ""
    grids: tuple[Mapping[str, Any], ...] = ()
    baseline: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self, "config.study.")
        if not self.grids:
            raise CwpsError("config.study.grids is empty: give at least one mapping of keys to values")
        known = known_keys()
        for number, grid in enumerate(self.grids):
            where = f"study.grids[{number}]"
            if not grid:
                raise CwpsError(f"config.{where} is empty: give at least one key and its values")
            for key, values in grid.items():
                _check_values(key, values, where, known)
        object.__setattr__(self, "baseline", _flat(self.baseline))
        for key in self.baseline:
            if key not in self.swept:
                raise CwpsError(f"config.study.baseline.{key}: no grid sweeps it; name one of {self.swept}")

    @property
    def swept(self) -> tuple[str, ...]:
        """The keys that any grid sweeps."""
        return tuple(dict.fromkeys(key for grid in self.grids for key in grid))

    @property
    def most_cells(self) -> int:
        """The number of cells of its grids; a cell of several grids is counted in each."""
        return sum(math.prod(map(len, grid.values())) for grid in self.grids)

    @functools.cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Its cells, each once.

        Raises:
            CwpsError: a cell's config is not valid.
        """
        found: dict[str, Cell] = {}
        for number, grid in enumerate(self.grids):
            for values in itertools.product(*grid.values()):
                cell = self._cell(dict(zip(grid, values, strict=True)), f"config.study.grids[{number}]")
                found.setdefault(cell.name, cell)
        return tuple(found.values())

    def _cell(self, chosen: Mapping[str, Any], where: str) -> Cell:
        config = copy.deepcopy(self.base)  # references between its keys hold in the copy
        flat = {**FIXED, **chosen}
        with config.ignore_type():  # `run_config` tells better what a value has to be
            for key, value in flat.items():
                config.update_from_flattened_dict({key: value})
        values = config.to_dict()
        if values["metric"] != "accuracy":
            raise CwpsError(
                f"config.metric = {values['metric']!r}: a study compares by accuracy; leave it out"
            )
        method = values["method"]
        for key in chosen:
            if key.split(".")[0] in methods.METHODS.keys() - {method}:
                raise CwpsError(
                    f"{where}.{key}: no setting of method {method!r}, which the grid has too; give "
                    f"{key.split('.')[0]} a grid of its own"
                )
        differing = {key: value for key, value in chosen.items() if value != _value(self.base, key)}
        try:
            run = run_config(_of_method(values))
        except CwpsError as error:
            raise CwpsError(f"{where}, the cell of {dict(chosen)}: {error}") from error
        told = {**differing, "method": method, "seed": run.seed}
        theirs = methods.METHODS.keys() - {method}
        swept = {key: None if key.split(".")[0] in theirs else _value(config, key) for key in self.swept}
        return Cell(_name(told), run, swept)


def read_study(config: Any) -> Study:
    """Returns the checked study of a config file.

    Args:
        config: the file's `ml_collections.ConfigDict`, with ``config.study``.

    Raises:
        CwpsError: there is no study, an unknown key, an empty grid, or a value that is given twice.
    """
    base = copy.deepcopy(config)
    given = base.to_dict().get("study")
    if not given:
        raise CwpsError("config.study is not set: give a study file, such as configs/studies/digits_small.py")
    with base.unlocked():  # flags lock it
        del base.study
    known = [field.name for field in dataclasses.fields(Study) if field.name != "base"]
    for key in given:
        if key not in known:
            raise CwpsError(unknown_key(key, known, "study."))
    return Study(base, **given)


def base_config(path: pathlib.Path, *variant: str) -> Any:
    """Returns the config of another config file, on which a study file builds.

    Args:
        path: of the file.
        variant: the argument of its `get_config`.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise CwpsError(f"{path}: no such config file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*variant)


def _check_values(key: str, values: Any, where: str, known: list[str]) -> None:
    if key in FIXED:
        raise CwpsError(f"config.{where}.{key}: a cell is one run by one method; sweep method or seed")
    if key not in known:
        raise CwpsError(unknown_key(key, known, f"{where}."))
    if not isinstance(values, tuple | list):
        raise CwpsError(f"config.{where}.{key} = {values!r}: must be a tuple of values")
    if not values:
        raise CwpsError(f"config.{where}.{key} is empty: give at least one value")
    for value in values:
        if list(values).count(value) > 1:
            raise CwpsError(f"config.{where}.{key} = {values}: names {value!r} twice; give each value once")


def _of_method(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config's values without the settings of methods that it does not use."""
    theirs = methods.METHODS.keys() - {values["method"]}
    overrides = {
        task: {key: value for key, value in own.items() if key not in theirs}
        for task, own in values["overrides"].items()
    }
    kept = {key: value for key, value in values.items() if key not in theirs}
    return {**kept, "overrides": overrides}


def _value(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Returns nested keys as one mapping of dotted ones."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return found


def _name(told: Mapping[str, Any]) -> str:
    """Returns a cell's name: a readable beginning, and an end that makes it unique."""
    rest = {key: told[key] for key in sorted(told.keys() - {"method", "seed"})}
    parts = [str(told["method"]), f"seed{told['seed']}", *(f"{key}{value}" for key, value in rest.items())]
    readable = re.sub(r"[^\w.+]+", "-", "_".join(parts))[:80].strip("-")
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()
    return f"{readable}-{digest[:8]}"
