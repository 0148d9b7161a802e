"""Your own photos: one task for each folder of `data_dir`, learned from an ImageNet ResNet-18.

Command:    python -m cwps_jax.main --config configs/photos.py --config.data_dir=DATA
            (other folders than birds with --config.tasks="('cars','planes')")
Data:       DATA/<task>/<train or test>/<class>/<file>, or zip archives of such folders in DATA
Weights:    DATA/weights/resnet18.safetensors, in torchvision's key names; or, from the Hugging Face hub,
            --config.weights=hf://timm/resnet18.tv_in1k/model.safetensors (not yet run)
Run time:   depends on the number of photos; minutes on a GPU are expected, hours on two CPU cores
Reached:    not yet run on real photos, nor on a GPU or TPU
"""

from cwps_jax.config import default_config


def get_config():
    config = default_config()

    config.data = "folders"
    config.tasks = ("birds",)
    config.crop = "random_resized"
    config.crop_area = (0.3, 1.0)
    config.flip = True

    config.backbone = "resnet18"
    config.image_size = 224
    config.weights = config.get_ref("data_dir") + "/weights/resnet18.safetensors"

    config.compare = ()  # ("finetune",) trains a whole network beside each task, to compare with
    config.budget = 0.4
    config.epochs = 20
    config.least_steps = 300  # few photos are seen more often
    config.batch_size = 32
    config.learning_rate = 0.01
    config.weight_decay = 1e-4
    config.seed = 0
    return config
