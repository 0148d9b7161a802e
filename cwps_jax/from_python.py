"""A run of main from Python: `learn_tasks`. It ends no interpreter and defines no flags.

Parsing a command line defines absl flags, and the program `cwps_jax.main` replaces itself by a fresh process.
Neither may happen to a notebook or to another program, so this module imports neither of the two.
"""

import os
import sys
from collections.abc import Mapping
from typing import Any

from cwps_jax import distributed
from cwps_jax.config import RunConfig, run_config


def learn_tasks(
    config: RunConfig | Mapping[str, Any], workdir: str | os.PathLike[str], *, quiet: bool = False
) -> dict[str, Any]:
    """Learns every task of a config that is not in the workdir's pool yet, and measures all of them.

    This does what ``python -m cwps_jax.main`` does with the same config, and leaves the same workdir. It
    measures in this process, because a notebook that holds a TPU cannot share it with a second process; the
    measured models are nevertheless read from the disk again. After an interruption the same call resumes
    from the last save (`config.save_minutes`).

    Args:
        config: a `RunConfig`, or a `ConfigDict` such as `default_config` returns, or a mapping with its keys.
        workdir: the folder of the run's results, or a gs:// or s3:// address.
        quiet: whether nothing is shown; by default progress and the tables are.

    Returns:
        The content of results.json, see docs/results.md. The tasks are in ``Pool.open(f"{workdir}/pool")``.

    Raises:
        CwpsError: the config, the data or the workdir does not fit, or cannot be written to; nothing has been
            written then.

    Example:
        >>> import cwps_jax as cwps
        >>> config = cwps.default_config()
        >>> config.update({"data": "digits", "source": "digits", "tasks": ("negative",)})
        >>> results = cwps.learn_tasks(config, "runs/negative")  # doctest: +SKIP
    """
    import jax
    from rich.console import Console

    from cwps_jax import run
    from cwps_jax.compilation_cache import start_jax
    from cwps_jax.finish import finish
    from cwps_jax.workdir import check_workdir, opened_workdir

    if not isinstance(config, RunConfig):
        config = run_config(config.to_dict() if hasattr(config, "to_dict") else config)
    # A folder of compiled programs that the caller has chosen stays.
    chosen = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if chosen is None:
        start_jax(config)
    given = os.fspath(workdir)
    check_workdir(given)
    # Rich's bars in a notebook need widgets; lines of text do not.
    width = None if sys.stdout.isatty() else 120
    console = Console(width=width, force_jupyter=False, quiet=quiet or not distributed.first())
    with opened_workdir(given) as folder:
        run.learn(config, folder, console)
        return finish(config, folder, console)
