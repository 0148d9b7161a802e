"""What is public is documented: a stranger finds what goes in."""

import inspect

import pytest

import cwps_jax as cwps

FUNCTIONS = {
    **{name: one for name in cwps.__all__ if inspect.isfunction(one := getattr(cwps, name))},
    **{
        f"Pool.{name}": one
        for name, one in inspect.getmembers(cwps.Pool, inspect.isroutine)
        if not name.startswith("_")
    },
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_says_what_it_takes(name):
    text = inspect.getdoc(FUNCTIONS[name]) or ""
    parameters = [one for one in inspect.signature(FUNCTIONS[name]).parameters if one not in ("self", "cls")]
    assert text, "no docstring"
    described = text.partition("Args:")[2]
    for parameter in parameters:
        assert parameter in described, parameter
