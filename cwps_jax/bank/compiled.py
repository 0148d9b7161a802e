"""Programs that are compiled before a request runs them, so that no other request waits for the compiler."""

import threading
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import jax
import numpy as np

_Result = TypeVar("_Result")


class NotCompiled(Exception):
    """A request needs a program that is not compiled yet.

    Attributes:
        compile: compiles it, and needs no lock; afterwards the request can be tried again.
    """

    def __init__(self, compile: Callable[[], None]) -> None:
        super().__init__("a program of the bank is not compiled yet")
        self.compile = compile


def holding(lock: AbstractContextManager[Any], call: Callable[[], _Result]) -> _Result:
    """Returns what a call returns, made while the lock is held.

    A program that is not compiled yet is compiled without the lock, and then the call is made again.
    """
    while True:
        with lock:
            try:
                return call()
            except NotCompiled as error:
                compile = error.compile
        compile()


class Programs:
    """Remembers which programs are compiled. JAX itself keeps them, and finds them again by their shapes."""

    def __init__(self) -> None:
        self._compiled: set[Hashable] = set()
        self._one_at_a_time = threading.Lock()

    def run(self, key: Hashable, program: Any, *arguments: Any) -> Any:
        """Returns what a jitted program gives.

        Args:
            key: equal for calls whose arguments have equal shapes and dtypes. If it were equal for others,
                these would be compiled when they run.
            program: the function that `jax.jit` returned.
            *arguments: its arguments; those that are not arrays are static.

        Raises:
            NotCompiled: there was no such call before.
        """
        if key not in self._compiled:
            shapes = jax.tree.map(_shape, arguments)
            raise NotCompiled(lambda: self._compile(key, program, shapes))
        return program(*arguments)

    def _compile(self, key: Hashable, program: Any, shapes: tuple[Any, ...]) -> None:
        with self._one_at_a_time:
            if key not in self._compiled:
                program.lower(*shapes).compile()
                self._compiled.add(key)


def _shape(argument: Any) -> Any:
    is_array = isinstance(argument, jax.Array | np.ndarray)
    return jax.ShapeDtypeStruct(argument.shape, argument.dtype) if is_array else argument
