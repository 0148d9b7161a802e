"""The folder of compiled programs that later runs reuse: `config.compilation_cache`."""

import os
import tempfile

from absl import logging

from cwps_jax.config import RunConfig


def start_jax(config: RunConfig) -> None:
    """Imports JAX, with the config's folder of compiled programs if it can be written to."""
    keep_programs(config.compilation_cache, "config.compilation_cache = ")


def keep_programs(folder: str, setting: str) -> None:
    """Imports JAX, which keeps compiled programs in a folder if it can be written to.

    Args:
        folder: "" for none; "~" is the user's own.
        setting: name of the setting, for the warning that the folder cannot be written to.
    """
    import jax

    if folder:
        place = os.path.expanduser(folder)
        try:
            os.makedirs(place, exist_ok=True)
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            logging.warning(
                "%s%r: cannot be written to (%s); continuing without it", setting, folder, error.strerror
            )
            return
        jax.config.update("jax_compilation_cache_dir", place)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
