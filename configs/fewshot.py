"""Few-shot: any other config with k training images per class, drawn three times.

Command:    python -m cwps_jax.main --config configs/fewshot.py:pacs,10 --config.data_dir=DATA
            (or another config, number and flags, as in configs/fewshot.py:domainnet:resnet50,16)
Data:       that of the base config, see there; a draw is fixed by its seed
Run time:   pacs,10: 40 minutes on two CPU cores that other work shared, fine-tuning and probe included
Reached:    pacs,10, with a rate of 0.05: 65.6% in the mean over tasks and draws with 0.44x of a backbone
            each; fine-tuned 66.7%, probed 51.7% (docs/results/pacs_10_shots.json); the others not yet run,
            nor any on a GPU or TPU
"""

import importlib.util
import pathlib

from cwps_jax.errors import CwpsError

FOLDER = pathlib.Path(__file__).parent
BASES = sorted(path.stem for path in FOLDER.glob("*.py") if path.name != "fewshot.py")


def get_config(variant="pacs,10"):
    base, _, shots = variant.partition(",")
    name, *chosen = base.split(":", 1)
    if name not in BASES or not shots.isdecimal() or int(shots) < 1:
        raise CwpsError(
            f"fewshot has no variant {variant!r}: give a config and the images per class, such as pacs,10 or "
            f"domainnet:resnet50,16; the config is one of {', '.join(BASES)}"
        )
    # A config file is loaded by its path, wherever the run starts: so are its siblings.
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(*chosen)

    config.shots = int(shots)
    config.draws = 3
    config.least_steps = 200  # ours: ten epochs of the base may be a handful of steps
    return config
