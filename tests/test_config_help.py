"""--help: every key once, in its group, with its default and one line of what it means."""

import dataclasses
import sys

import pytest

from cwps_jax import command_line, methods
from cwps_jax.config import RunConfig, known_keys
from cwps_jax.config_help import WIDTH, config_help, meanings


def test_every_key_has_one_line():
    lines = [line for line in config_help().splitlines() if line.startswith("  ")]
    assert sorted(line.split()[0] for line in lines) == sorted(known_keys())
    assert max(map(len, lines)) <= WIDTH


@pytest.mark.parametrize("part", [RunConfig, *(type(method()) for method in methods.METHODS.values())])
def test_every_key_says_what_it_means(part):
    assert {field.name for field in dataclasses.fields(part)} <= meanings(part).keys()


def test_a_line_has_the_default_and_the_meaning():
    (line,) = [line for line in config_help().splitlines() if line.startswith("  epochs ")]
    assert line.split(maxsplit=2) == ["epochs", "30", "epochs over all stages together"]


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_ends_with_success_and_starts_nothing(flag, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main", flag])
    with pytest.raises(SystemExit) as end:
        command_line.run(lambda config: pytest.fail("the program ran"))
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert "--debug" in printed and "How a task is learned" in printed
