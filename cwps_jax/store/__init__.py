"""The pool on disk: one shared tree, two trees a task version, one index."""

from cwps_jax.store.damage import Damage
from cwps_jax.store.pool import Pool

__all__ = ["Damage", "Pool"]
