"""Handwritten digits in seven domains: the demo, and the smallest run that shows everything.

Command:    python -m cwps_jax.main --config configs/digits.py        (or: make demo)
Data:       embedded, scikit-learn's digits (see cwps_jax/data/digits.py)
Run time:   about 70 to 100 s on two CPU cores, compilation, fine-tuning and probe included
Reached:    see the table in docs/get_started.md; not yet run on a GPU or TPU
"""

from cwps_jax.config import default_config


def get_config():
    config = default_config()

    # The pre-trained model is trained in the same run, on the scans as they are.
    config.backbone = "resnet8"
    config.data = "digits"
    config.source = "digits"
    config.source_epochs = 10

    config.tasks = ("negative", "mirrored", "rotated", "thick", "clutter", "outline", "loops")
    config.compare = ("finetune", "probe")

    config.method = "cwps"
    config.budget = 0.4  # of the backbone's parameters, for each task
    config.epochs = 10  # 2 warm-up, 2 soft, 6 hard; fine-tuning gets all 10
    config.batch_size = 64
    config.learning_rate = 0.05
    config.weight_decay = 5e-4
    config.seed = 0
    return config
