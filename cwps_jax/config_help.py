"""The text of ``--help`` for a config: every key in its group, with its default and one line."""

import dataclasses
import inspect
import re
import textwrap
from typing import Any

from cwps_jax import methods
from cwps_jax.config import RunConfig
from cwps_jax.settings import DataConfig, TrainConfig

GROUPS = (
    ("The run", RunConfig),
    ("How a task is learned", TrainConfig),
    ("Data, and what is done to images", DataConfig),
)
WIDTH = 140
NO_KEYS = ("settings",)  # a field of RunConfig that holds the keys of the methods


def config_help() -> str:
    """Returns the keys of `RunConfig` and of every method, in groups.

    Examples:
        >>> print(config_help().splitlines()[0])
        The run (--config.KEY=VALUE):
        >>> [line] = [line for line in config_help().splitlines() if line.startswith("  lora.rank ")]
        >>> line.split()
        ['lora.rank', '8', 'r,', 'the', 'rank', 'of', 'each', 'change']
    """
    parts = []
    shown = {field.name for _, part in GROUPS[1:] for field in dataclasses.fields(part)}
    for title, part in GROUPS:
        known = shown if part is RunConfig else set()
        parts.append(f"{title} (--config.KEY=VALUE):\n{_keys(part, '', {*known, *NO_KEYS})}")
    for name, method in methods.METHODS.items():
        keys = _keys(type(method()), f"{name}.", set())
        if keys:
            parts.append(f"The method {name} (--config.KEY=VALUE):\n{keys}")
    return "\n\n".join(parts)


def meanings(part: type) -> dict[str, str]:
    """Returns, for each field, the first sentence about it in the docstring of a dataclass or of its bases.

    Args:
        part: a dataclass whose docstring has ``Attributes:`` in the Google style.
    """
    found: dict[str, str] = {}
    for one in reversed(part.__mro__):
        _, _, listed = (inspect.cleandoc(one.__doc__ or "")).partition("\nAttributes:\n")
        listed = re.split(r"\n(?=\S)", listed)[0]
        for entry in re.split(r"\n(?=    \S)", listed):
            names, _, text = " ".join(entry.split()).partition(": ")
            sentence = text.split(". ")[0].rstrip(".").replace("`", "")
            found |= {name: sentence for name in names.split(", ")}
    return found


def _keys(part: Any, before: str, without: set[str]) -> str:
    known, rows = meanings(part), []
    for field in dataclasses.fields(part):
        if field.name not in without:
            default = "" if field.default is dataclasses.MISSING else repr(field.default)
            key = f"  {before + field.name:<28} {default:<20}"
            meaning = textwrap.shorten(known.get(field.name, ""), WIDTH - len(key) - 1, placeholder=" ...")
            rows.append(f"{key} {meaning}".rstrip())
    return "\n".join(rows)
