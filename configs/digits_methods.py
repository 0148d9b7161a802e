"""Every method on three domains of the handwritten digits: one table, one picture.

Command:    python -m cwps_jax.main --config configs/digits_methods.py   (both variants: make demo-methods)
            configs/digits_methods.py:vit has the methods that need a Vision Transformer
Data:       embedded, scikit-learn's digits (see cwps_jax/data/digits.py)
Run time:   under 4 minutes on two CPU cores, :vit under 5, compilation included
Reached:    see the tables in docs/methods.md (docs/results/digits_methods_*.json, one seed); not yet run on a
            GPU or TPU
"""

from cwps_jax.config import default_config
from cwps_jax.errors import CwpsError

# Those that serve any backbone.
ANY = (
    *("finetune", "probe", "norm_only", "bitfit", "ssf", "taps"),
    *("piggyback", "packnet", "lora", "atlas", "ba2"),
)
VARIANTS = {"resnet": (*ANY, "adapter"), "vit": (*ANY, "l2p", "dualprompt")}


def get_config(variant="resnet"):
    if variant not in VARIANTS:
        raise CwpsError(f"digits_methods has no variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    config = default_config()

    config.data = "digits"
    config.source = "digits"
    config.tasks = ("negative", "rotated", "loops")
    config.method = "cwps"
    config.compare = VARIANTS[variant]
    config.keep_compared = True  # PackNet builds on its own earlier tasks
    config.budget = 0.4
    config.epochs = 10
    config.seed = 0

    if variant == "vit":
        config.backbone = "vit_nano4"
        config.source_epochs = 40
        config.batch_size = 32
        config.optimizer = "adamw"
        config.learning_rate = 3e-3
        config.learning_rate_warmup = 0.05
        config.weight_decay = 0.3
        config.dualprompt.learning_rate = 0.3  # better on validation than its default, in a trial
    else:
        config.backbone = "resnet8"
        config.source_epochs = 10
        config.batch_size = 64
        config.learning_rate = 0.05
        config.weight_decay = 5e-4
    # Published rates are for thousands of steps; here there are 180 or 360.
    config.ssf.learning_rate = 1e-2
    config.lora.learning_rate = 1e-2
    config.piggyback.learning_rate = 1e-3
    config.packnet.learning_rate = 0.05
    config.ba2.learning_rate = 1e-3
    return config
