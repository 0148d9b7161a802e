"""Checks of config values: each raises one clear line."""

import dataclasses
import difflib
import reprlib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import optax

from cwps_jax.errors import CwpsError

LONGEST = 100  # characters of a value in an error: some are whole functions


def check_types(config: Any, where: str = "config.") -> None:
    """Raises CwpsError for the first field whose value does not have the field's type.

    Values of NumPy, JAX and notebooks become plain Python first: a scalar array becomes a number, and a list
    or an array becomes a tuple if the field is a tuple.

    Args:
        config: a dataclass, frozen or not; its fields are set.
        where: what stands before a field's name in the error.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        given, hint = getattr(config, field.name), hints[field.name]
        value = _plain(given, hint)
        if value is not given:
            object.__setattr__(config, field.name, value)
        if not _has_type(value, hint):
            told = reprlib.repr(value) if len(repr(value)) > LONGEST else repr(value)
            raise CwpsError(f"{where}{field.name} = {told}: must be {_describe(hint)}")


def _plain(value: Any, hint: Any) -> Any:
    if hint is Any:
        return value
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next((one for one in typing.get_args(hint) if typing.get_origin(one) is tuple), hint)
    sequence = isinstance(value, list | tuple) or getattr(value, "ndim", 0) == 1
    if typing.get_origin(hint) is tuple and sequence:
        return tuple(_plain(one, typing.get_args(hint)[0]) for one in value)
    if hasattr(value, "dtype") and getattr(value, "ndim", None) == 0:
        return value.item()
    return value


def _has_type(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in arguments)
    if origin in (types.UnionType, typing.Union):
        return any(_has_type(value, one) for one in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_has_type(one, arguments[0]) for one in value)
    if origin is Mapping:
        return isinstance(value, Mapping)
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
    if origin is Mapping:
        return "keys and values"
    if origin is tuple:
        return f"a tuple of {_describe(arguments[0])}"
    names = {float: "a number", int: "a whole number", str: "a string", bool: "true or false"}
    return {**names, optax.GradientTransformation: "an optax transformation"}.get(hint, "None")


def at_least(config: Any, where: str = "config.", **least: float) -> None:
    """Raises CwpsError for the first of the named fields that is below its bound."""
    for name, bound in least.items():
        if getattr(config, name) < bound:
            raise CwpsError(f"{where}{name} = {getattr(config, name)}: must be at least {bound}")


def within(config: Any, where: str, low: float, high: float, *names: str) -> None:
    """Raises CwpsError for the first of the named fields that is not in [low, high]."""
    for name in names:
        if not low <= getattr(config, name) <= high:
            raise CwpsError(f"{where}{name} = {getattr(config, name)}: must be in [{low}, {high}]")


def below_one(config: Any, *names: str) -> None:
    """Raises CwpsError for the first of the named fields that is not in [0, 1)."""
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise CwpsError(f"config.{name} = {getattr(config, name)}: must be at least 0 and below 1")


def check_task_name(name: str, where: str = "task") -> None:
    """Raises CwpsError for a name that cannot be a task's."""
    if name == "pretrained":
        raise CwpsError(f"{where}: 'pretrained' is the pre-trained model's own name; choose another")
    if not name or name.startswith(".") or any(c in name for c in "/\\@\0") or name != name.strip():
        raise CwpsError(
            f"{where}: {name!r} cannot be a task's name; use letters, digits, '-' and '_', no '/', '@' "
            "or leading '.'"
        )


def unknown_key(key: str, known: Iterable[str], where: str = "") -> str:
    """Returns the line that refuses an unknown config key, with the (first) nearest known one."""
    near = nearest(key, known)
    told = f"; did you mean config.{where}{near}?" if near else ""
    return f"config.{where}{key} is not known{told}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns the (first) known name that is nearest to one that is not known; "" where none is near."""
    matcher = difflib.SequenceMatcher()
    matcher.set_seq2(name)
    likeness = {}
    for one in known:
        matcher.set_seq1(one)
        likeness[one] = matcher.ratio()
    near = max(likeness, key=lambda one: likeness[one], default="")
    return near if likeness.get(near, 0) >= 0.5 else ""
