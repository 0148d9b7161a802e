"""What the tests of studies share: the small study that is shipped, shrunk further."""

import importlib.util
import os
import pathlib

from cwps_jax.study import Study, read_study

CONFIGS = pathlib.Path(__file__).parent.parent / "configs" / "studies"


def study_config(name: str):
    """Returns the ConfigDict of a shipped study."""
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def small_config(cache: pathlib.Path, **changes):
    """Returns the ConfigDict of six cells: two methods in two seeds, and the second task learned alone.

    Args:
        cache: folder of what is remembered of data.
        changes: keys of the main config, or of the study.
    """
    config = study_config("digits_small")
    config.shots, config.epochs, config.source_epochs, config.norm_batches = 16, 3, 1, 1
    config.cache_dir, config.compilation_cache = str(cache), os.environ["CWPS_TEST_CACHE"]
    seeds = (0, 1)
    config.study.grids = (
        {"method": ("cwps", "finetune"), "seed": seeds},
        {"method": ("cwps",), "tasks": (("loops",),), "seed": seeds},
    )
    config.study.baseline = {"method": "finetune"}
    for key, value in changes.items():
        place = config.study if key in ("grids", "baseline", "title") else config
        place[key] = value
    return config


def small_study(cache: pathlib.Path, **changes) -> Study:
    """Returns the study of `small_config`."""
    return read_study(small_config(cache, **changes))
