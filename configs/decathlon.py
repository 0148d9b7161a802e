"""Visual Domain Decathlon: nine small-image tasks from an ImageNet model, the tenth of its data sets.

Command:    python -m cwps_jax.main --config configs/decathlon.py         (or configs/decathlon.py:resnet34)
Install:    pip install 'cwps_jax[run,tfds,hub]'
Data:       TensorFlow Datasets, shorter sides of 72 px, prepared once where TensorFlow is installed, such as
            tfds build visual_domain_decathlon/aircraft --file_format=array_record --data_dir=DATA
            then --config.data_dir=DATA (without it, TFDS's own default)
Weights:    torchvision's first ImageNet ones from the Hugging Face hub, or
            --config.weights=FILE
Run time:   not yet run; 174,000 training images of 64 px, 30 epochs, three methods: meant for a GPU or TPU
Reached:    not yet run
Challenge:  its scores are on test labels that only its server has, these accuracies on its validation split;
            its entries use a ResNet-26 for 64 px, where these weights were trained at 224 px
"""

from cwps_jax.config import default_config
from cwps_jax.errors import CwpsError

VARIANTS = ("resnet18", "resnet34")


def get_config(variant="resnet18"):
    if variant not in VARIANTS:
        raise CwpsError(f"decathlon has no variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    config = default_config()

    config.data = "tfds"
    config.dataset = "visual_domain_decathlon/{task}"
    config.tasks = (
        "aircraft",
        "cifar100",
        "daimlerpedcls",
        "dtd",
        "gtsrb",
        "omniglot",
        "svhn",
        "ucf101",
        "vgg-flowers",
    )
    # The labels of "test" are not public. A tenth of each class of "train" is held out for choices.
    config.test_split = "validation"

    # As residual adapters were trained: squares of 64 px anywhere in the image, mirrored; signs, letters and
    # numbers are neither mirrored nor cut.
    config.image_size = 64
    config.resize = 72
    config.crop = "random"
    config.flip = True
    whole = {"crop": "center", "resize": config.get_ref("image_size"), "flip": False}
    config.overrides = {"gtsrb": whole, "omniglot": whole, "svhn": whole}

    config.backbone = variant
    config.weights = f"hf://timm/{variant}.tv_in1k/model.safetensors"

    config.compare = ("finetune", "probe")
    config.budget = 0.4
    config.epochs = 30
    config.batch_size = 128  # as published
    config.learning_rate = 0.02  # TAPS's for DomainNet, scaled to the batch
    config.weight_decay = 0.0
    config.seed = 0
    return config
