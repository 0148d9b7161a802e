"""Arrows point down only: which room of the package may import which."""

import ast
import pathlib
import re
import sys

import pytest

import cwps_jax

PACKAGE = pathlib.Path(cwps_jax.__file__).parent
RANKS = {
    "errors": -2,
    "extras": -1.5,
    "files": -2,
    "stop_signals": -2,
    "core": -1,
    "buckets": -1,
    "distributed": -1,
    "search": 0,
    "sharding": 0,
    "version": 0,
    "tracing": 0,
    "active_gradient": 1,
    "inputs": 1,
    "settings": 1,
    "modules": 1,
    "parallel": 1,
    "profiling": 2,
    "models": 2,
    "methods": 2,
    "config": 3,
    "compilation_cache": 4,
    "config_help": 3.5,
    "command_line": 4,
    "data": 5,
    "store": 5,
    "train": 6,
    "provenance": 6,
    "saved": 6.5,
    "recorded": 6.7,
    "learn": 7,
    "bank": 7.5,
    "serve": 8,
    "report": 8,
    "prepare": 8,
    "pretraining": 9,
    "rounds": 9,
    "workdir": 10,
    "finish": 10,
    "run": 10,
    "pool": 10,
    "server": 10,
    "study": 10,
    "from_python": 11,
    "main": 11,
}
IMPURE = {"concurrent", "io", "multiprocessing", "os", "pathlib", "threading"}  # pure functions need none
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room_of(path):
    if path.name == "__main__.py":  # a program, whichever room's folder it lies in
        return "main"
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(source, package):
    """Yields the full name of everything that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [base])])
            # `from cwps_jax import methods` imports a room; what else is named may be a module too.
            yield from (f"{base}.{alias.name}" for alias in node.names)


def forbidden(source, room, package="cwps_jax"):
    """Returns the imports of a room's file that point up or sideways, and, in core, out of it."""
    found = []
    for name in imported_modules(source, package):
        top, *rest = name.split(".")
        if top == "cwps_jax":
            target = rest[0] if rest else ""
            if target != room and RANKS.get(target, 99) >= RANKS[room]:
                found.append(name)
        elif room == "core" and (
            top not in {"jax", "numpy", "constriction"} | sys.stdlib_module_names or top in IMPURE
        ):
            found.append(name)
    return found


def test_every_room_has_its_rank():
    assert {room_of(path) for path in FILES} <= RANKS.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_down(path):
    package = ".".join(("cwps_jax", *path.relative_to(PACKAGE).parts[:-1]))
    assert forbidden(path.read_text(), room_of(path), package) == []


@pytest.mark.parametrize(
    ("source", "room", "wrong"),
    [
        ("import flax.linen as nn", "core", ["flax.linen"]),
        ("from threading import Lock", "core", ["threading.Lock"]),
        ("from cwps_jax.store import Pool", "search", ["cwps_jax.store.Pool"]),
        ("from cwps_jax.errors import CwpsError\nfrom cwps_jax.core.trees import flatten", "core", []),
        ("from cwps_jax.settings import TrainConfig", "core", ["cwps_jax.settings.TrainConfig"]),
        ("from cwps_jax.config import RunConfig", "methods", ["cwps_jax.config.RunConfig"]),
        ("from cwps_jax import parallel", "settings", ["cwps_jax.parallel"]),
        ("from cwps_jax import methods", "settings", ["cwps_jax.methods"]),
        ("from cwps_jax import methods", "config", []),
        ("from cwps_jax import methods", "train", []),
        ("def late():\n    import cwps_jax.report.table", "store", ["cwps_jax.report.table"]),
        ("from ..train import step", "methods", ["cwps_jax.train.step"]),
        ("import cwps_jax", "learn", ["cwps_jax"]),
    ],
)
def test_an_arrow_that_points_up_is_seen(source, room, wrong):
    assert forbidden(source, room, f"cwps_jax.{room}") == wrong


def test_nothing_that_could_run_code_is_loaded():
    unsafe = re.compile(r"\b(pickle|numpy\.load|np\.load|torch\.load|allow_pickle)\b")
    assert [path.name for path in FILES if unsafe.search(path.read_text())] == []
