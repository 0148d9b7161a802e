"""Omniglot: five alphabets, each a task of 22 to 40 letters, from a CIFAR-10 ResNet-20, at 32 px.

Command:    python -m cwps_jax.main --config configs/omniglot.py --config.data_dir=DATA
Data:       DATA/<alphabet>/<train or test>/<character>/<file>, or zip archives of such folders in DATA;
            15 of each character's 20 drawings to train on. The other 45 alphabets work the same: name them in
            config.tasks
Weights:    DATA/weights/resnet20_cifar10.safetensors, in torchvision's key names
Run time:   10 minutes on two CPU cores that other work shared, fine-tuning and probe included
Reached:    88.4% in the mean over the tasks with 0.45x of a backbone each; fine-tuned 88.8%, probed 55.8%
            (docs/results/omniglot_seed0.json, one seed); not yet run on a GPU or TPU
"""

from cwps_jax.config import default_config


def get_config():
    config = default_config()

    config.data = "folders"
    config.tasks = ("Balinese", "Early_Aramaic", "Greek", "Korean", "Latin")
    # The whole drawing: a letter is neither cut nor mirrored.
    config.image_size = 32
    config.resize = config.get_ref("image_size")
    config.interpolation = "bicubic"

    config.backbone = "resnet20_cifar"
    config.weights = config.get_ref("data_dir") + "/weights/resnet20_cifar10.safetensors"

    config.compare = ("finetune", "probe")
    config.budget = 0.45
    config.epochs = 20  # 8 to 16 batches each
    config.batch_size = 32
    config.learning_rate = 0.05
    config.weight_decay = 5e-4
    config.seed = 0
    return config
