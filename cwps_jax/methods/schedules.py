"""Schedules: a factor of all learning rates over the progress of a whole task, from 0 to 1."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

Schedule = Callable[[jax.Array], jax.Array]


def cosine(progress: jax.Array) -> jax.Array:
    """The schedule of half a cosine, from 1 to 0."""
    return 0.5 * (1 + jnp.cos(jnp.pi * progress))


def constant(progress: jax.Array) -> jax.Array:
    """The schedule that stays at 1."""
    return jnp.ones_like(progress)


@dataclasses.dataclass(frozen=True)
class Steps:
    """The schedule that falls to a tenth at each of these shares of a task's steps."""

    at: tuple[float, ...]

    def __call__(self, progress: jax.Array) -> jax.Array:
        return 0.1 ** jnp.sum(jnp.array(self.at) <= progress)
