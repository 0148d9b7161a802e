"""The verbs that show the content of a pool: list, show, diff."""

import argparse
import datetime
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.table import Table

from cwps_jax.core.trees import flatten
from cwps_jax.errors import CwpsError
from cwps_jax.pool.output import print_json, print_line, print_table
from cwps_jax.report.owners import channel_owners, layers_in_order
from cwps_jax.report.run_tables import borrowed_from
from cwps_jax.search.models import model_rows
from cwps_jax.store.pool import Pool
from cwps_jax.store.trees import OWN, PRETRAINED, TASKS

VERBS = ("list", "show", "diff")
_OWN_PLACE = ("learned_with", "compared")  # of a record: shown elsewhere


def add_verbs(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Adds the verbs of this file to the command line's."""
    one = verbs.add_parser("list", parents=[common], help="a row for each task")
    one.set_defaults(run=_list)
    one = verbs.add_parser("show", parents=[common], help="settings, classes and layers of a task")
    one.add_argument("task", metavar="TASK")
    one.set_defaults(run=_show)
    one = verbs.add_parser("diff", parents=[common], help="in what two tasks differ")
    one.add_argument("first", metavar="A")
    one.add_argument("second", metavar="B")
    one.set_defaults(run=_diff)


def listed(pool: Pool) -> list[dict[str, Any]]:
    """Returns a row for each task's newest version, oldest first."""
    return [_row(pool, task) for task in pool.tasks]


def shown(pool: Pool, task: str) -> dict[str, Any]:
    """Returns everything about a task: its row, settings, record and layers.

    Raises:
        CwpsError: no such task, or one of its files is damaged.
    """
    version = pool.version(task)
    known = version.record.get("learned_with") or {}
    layers = []
    if pool.shares_channels(task):
        for path, owners in channel_owners(pool, version.name).items():
            names, counts = np.unique(owners, return_counts=True)
            from_whom = {str(name): int(count) for name, count in zip(names, counts, strict=True)}
            own = from_whom.pop(version.task, 0)
            layers.append({"layer": path, "channels": len(owners), "own": own, "borrowed": from_whom})
    return {
        **_row(pool, task),
        "version": version.version,
        "classes": known.get("class_names") or version.record.get("classes"),
        "settings": settings_of(pool, task),
        "input": known.get("input"),
        "fingerprints": known.get("fingerprints"),
        "versions": known.get("versions"),
        "record": {key: one for key, one in version.record.items() if key not in _OWN_PLACE},
        "layers": layers,
    }


def compared(pool: Pool, first: str, second: str) -> dict[str, Any]:
    """Returns how two tasks differ: their settings, and the share of equal channels in each layer.

    Channels are compared as the tasks' networks use them, bit by bit.

    Raises:
        CwpsError: no such task, or one of its files is damaged.
    """
    settings = [settings_of(pool, name) for name in (first, second)]
    keys = dict.fromkeys(key for one in settings for key in one)
    differing = {key: [one.get(key) for one in settings] for key in keys}
    rows = [model_rows(pool.layout, flatten(pool.effective(name)["params"])) for name in (first, second)]
    equal = {}
    for layer in layers_in_order(pool.layout):
        same = [np.all(rows[0][leaf] == rows[1][leaf], axis=1) for leaf in layer.leaves]
        equal[layer.path] = float(np.mean(np.logical_and.reduce(same)))
    return {
        "settings": {key: pair for key, pair in differing.items() if pair[0] != pair[1]},
        "equal_channels": equal,
    }


def settings_of(pool: Pool, task: str) -> dict[str, Any]:
    """Returns a task's settings in one level, "images.crop"; an empty dict for the pre-trained model."""
    if task == PRETRAINED:
        return {}
    version = pool.version(task)
    # Of a version that does not say what it was learned with, its method is known.
    config = {"method": {"name": version.method, **version.settings}}
    known = version.record.get("learned_with") or {"config": config}
    return _flat({**known["config"], "images": known.get("images") or {}})


def _row(pool: Pool, task: str) -> dict[str, Any]:
    version = pool.version(task)
    # A stored folder is never changed: its time is when the task was stored here.
    stored = (pool.folder / TASKS / version.folder / OWN).stat().st_mtime
    return {
        "task": version.task,
        "method": version.method,
        "metric": version.record.get("metric", "accuracy"),
        "accuracy": version.record.get("accuracy_when_learned"),
        "kept": pool.count(task).ratio if version.ratio is None else version.ratio,
        "bytes": version.bytes,
        "from": pool.relation(task) if pool.shares_channels(task) else None,
        "stored": datetime.datetime.fromtimestamp(int(stored)).astimezone().isoformat(),
    }


def _list(pool: Pool, given: argparse.Namespace) -> None:
    rows = listed(pool)
    if given.json:
        return print_json(rows)
    count = f"{len(rows)} task{'' if len(rows) == 1 else 's'}"
    table = Table(title=f"{count} on {pool.index.backbone or 'a backbone of your own'}")
    for column, justify in zip(("task", "accuracy", "kept", "bytes"), ("left", *["right"] * 3), strict=True):
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    table.add_column("channels taken from", overflow="fold")
    table.add_column("stored", no_wrap=True)
    for row in rows:
        table.add_row(
            row["task"],
            *_cells(row),
            borrowed_from(row["task"], row["from"]) if row["from"] else row["method"],
            row["stored"][:16].replace("T", " "),
        )
    print_table(table)


def _show(pool: Pool, given: argparse.Namespace) -> None:
    if given.task == PRETRAINED:
        raise CwpsError(f"{pool.folder}: {PRETRAINED!r} is not a task; name one of {', '.join(pool.tasks)}")
    found = shown(pool, given.task)
    if given.json:
        return print_json(found)
    accuracy, kept, size = _cells(found)
    named = "accuracy " if found["metric"] == "accuracy" else ""
    print_line(f"{found['task']}@{found['version']}: {named}{accuracy}, keeps {kept}, {size} bytes")
    classes = found["classes"]
    named = ", ".join(classes) if isinstance(classes, list) else "names were not recorded"
    print_line(f"classes: {len(classes) if isinstance(classes, list) else classes} ({named})")
    settings = Table("setting", "value", title=f"learned by {found['method']}")
    for key, value in found["settings"].items():
        settings.add_row(key, str(value))
    print_table(settings)
    layers = Table("layer", "channels", "own", "taken from", title="layers")
    for one in found["layers"]:
        taken = ", ".join(f"{name} {count}" for name, count in one["borrowed"].items())
        layers.add_row(one["layer"], str(one["channels"]), str(one["own"]), taken)
    if found["layers"]:
        print_table(layers)


def _diff(pool: Pool, given: argparse.Namespace) -> None:
    found = compared(pool, given.first, given.second)
    if given.json:
        return print_json(found)
    settings = Table("setting", given.first, given.second, title="settings that differ")
    for key, pair in found["settings"].items():
        settings.add_row(key, *map(str, pair))
    print_table(settings)
    layers = Table("layer", "equal channels", title="channels that are the same to the bit")
    for path, share in found["equal_channels"].items():
        layers.add_row(path, f"{share:.1%}")
    print_table(layers)


def _cells(row: Mapping[str, Any]) -> tuple[str, str, str]:
    reached, metric = row["accuracy"], row["metric"]
    accuracy = f"{100 * reached:.1f}%" if reached is not None and metric == "accuracy" else "-"
    if reached is not None and metric != "accuracy":  # it need not be a share
        accuracy = f"{metric} {reached:.3f}"
    return accuracy, f"{row['kept']:.3f}x", f"{row['bytes']:,}"


def _flat(settings: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Returns nested settings in one level: {"method": {"name": "cwps"}} is {"method.name": "cwps"}."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{where}{key}.")
        else:
            found[f"{where}{key}"] = value
    return found
