"""DomainNet: 345 classes in six domains, each a task, from an ImageNet ResNet.

Command:    python -m cwps_jax.main --config configs/domainnet.py         (or configs/domainnet.py:resnet50)
Install:    pip install 'cwps_jax[run,tfds,hub]'
Data:       TensorFlow Datasets, the cleaned release with its published splits, prepared once where TensorFlow
            is installed: tfds build domainnet --file_format=array_record --data_dir=DATA
            then --config.data_dir=DATA (without it, TFDS's own default). Or, without TFDS, the official
            archives and lists (ai.bu.edu/M3SDA: real.zip, real_train.txt, real_test.txt, ...) in one folder,
            and --config.data=folders --config.data_dir=FOLDER
Weights:    torchvision's first ImageNet ones from the Hugging Face hub, or
            --config.weights=FILE
Run time:   not yet run; 410,000 training images, 30 epochs, three methods: meant for a GPU or TPU
Reached:    not yet run
Paper:      --config.budget=1 --config.cwps.search_distance=l2 --config.cwps.warm_up_share=0.25
            is its method, which sets not a size but lambda: 0.5 here, where the paper reports 0.3 to 0.7 as
            good; it does not say how long the soft and the hard stage are
"""

from cwps_jax.config import default_config
from cwps_jax.errors import CwpsError

VARIANTS = ("resnet34", "resnet50")  # ResNet-34 is what AdaShare and TAPS report


def get_config(variant="resnet34"):
    if variant not in VARIANTS:
        raise CwpsError(f"domainnet has no variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    config = default_config()

    config.data = "tfds"
    config.dataset = "domainnet/{task}"
    # As AdaShare orders them. TAPS learns each on its own; here a task may reuse those before it.
    config.tasks = ("real", "painting", "quickdraw", "clipart", "infograph", "sketch")
    config.image_size = 224
    config.crop = "random_resized"
    config.flip = True
    config.cache = "none"  # "disk" needs about 150 GB (cache_gigabytes) and crops from images of 256 px

    config.backbone = variant
    config.weights = f"hf://timm/{variant}.tv_in1k/model.safetensors"

    config.compare = ("finetune", "probe")
    config.budget = 0.4  # ours: a size a task; the paper sets lambda instead
    # TAPS's published settings; its DomainNet runs use this rate.
    config.epochs = 30
    config.batch_size = 32
    config.learning_rate = 0.005
    config.weight_decay = 0.0
    config.seed = 0
    return config
