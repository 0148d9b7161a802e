"""Studies: a grid of runs, each measured from a pool of its own, and what they say together."""

from cwps_jax.study.grid import Study, base_config, read_study

__all__ = ["Study", "base_config", "read_study"]
