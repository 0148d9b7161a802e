"""ImageNet-to-Sketch: birds, cars, flowers, paintings and sketches, from one ImageNet model.

Command:    python -m cwps_jax.main --config configs/imagenet_to_sketch.py --config.data_dir=DATA
            (or configs/imagenet_to_sketch.py:resnet18, :resnet34, :densenet121, :vit_b16)
Install:    pip install 'cwps_jax[run,tfds,hub]'
Data:       three tasks from TensorFlow Datasets, prepared once where TensorFlow is installed, such as
            tfds build caltech_birds2011 --file_format=array_record --data_dir=DATA
            (and cars196, oxford_flowers102); two in folders of the same DATA, as Piggyback's repository
            (github.com/arunmallya/piggyback) gives them: DATA/wikiart/<train or test>/<class>/<file> and
            DATA/sketch/<train or test>/<class>/<file>
Weights:    from the Hugging Face hub, or --config.weights=FILE: torchvision's
            first ImageNet ones, for ViT those that timm calls vit_base_patch16_224.augreg_in21k_ft_in1k
Run time:   not yet run; 74,000 training images, 30 epochs, three methods: meant for a GPU or TPU
Reached:    not yet run
Paper:      --config.budget=1 --config.cwps.search_distance=l2 --config.cwps.warm_up_share=0.25
            is its method, which sets not a size but lambda: 0.5 here, where the paper reports 0.3 to 0.7 as
            good; it does not say how long the soft and the hard stage are
"""

from cwps_jax.config import default_config
from cwps_jax.errors import CwpsError

VARIANTS = {
    "resnet18": "resnet18.tv_in1k",
    "resnet34": "resnet34.tv_in1k",
    "resnet50": "resnet50.tv_in1k",
    "densenet121": "densenet121.tv_in1k",
    "vit_b16": "vit_base_patch16_224.augreg_in21k_ft_in1k",
}


def get_config(variant="resnet50"):
    if variant not in VARIANTS:
        raise CwpsError(f"imagenet_to_sketch has no variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    config = default_config()

    config.data = "tfds"
    config.tasks = ("cub", "cars", "flowers", "wikiart", "sketch")  # in Piggyback's order
    config.image_size = 224
    config.crop = "random_resized"
    config.flip = True
    config.cache = "none"  # "disk" needs about 30 GB (cache_gigabytes) and crops from images of 256 px
    boxed = {"box": True, "crop": "stretch"}  # the box made a square, mirrored and not cut, as published
    config.overrides = {
        "cub": {"dataset": "caltech_birds2011", **boxed},
        "cars": {"dataset": "cars196", **boxed},
        "flowers": {"dataset": "oxford_flowers102", "train_split": "train+validation"},  # as published
        "wikiart": {"data": "folders"},
        "sketch": {"data": "folders"},
    }

    config.backbone = variant
    config.weights = f"hf://timm/{VARIANTS[variant]}/model.safetensors"

    config.compare = ("finetune", "probe")
    config.budget = 0.4  # ours: a size a task; the paper sets lambda instead
    # TAPS's published settings.
    config.epochs = 30
    config.batch_size = 32
    config.learning_rate = 0.005
    config.weight_decay = 0.0
    if variant == "vit_b16":
        config.learning_rate = 5e-5  # TAPS's rate for its ViT
        config.optimizer = "adamw"  # ours
        config.pixel_mean = config.pixel_deviation = (0.5, 0.5, 0.5)  # as these weights want it
    config.seed = 0
    return config
