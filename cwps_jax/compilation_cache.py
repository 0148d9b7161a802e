"""The folder of compiled programs that later runs reuse: `config.compilation_cache`."""

import os
import tempfile

from absl import logging

from cwps_jax.config import RunConfig


def start_jax(config: RunConfig) -> None:
    """Imports JAX, with the config's folder of compiled programs where it can be written to."""
    import jax

    if config.compilation_cache:
        folder = os.path.expanduser(config.compilation_cache)
        try:
            os.makedirs(folder, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            logging.warning(
                "config.compilation_cache = %r: cannot be written to (%s); continuing without it",
                config.compilation_cache,
                error.strerror,
            )
            return
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
