"""`DataConfig`: the source of a task's images, and their preparation for a model."""

import dataclasses
from typing import Literal

from cwps_jax.errors import CwpsError
from cwps_jax.settings.checks import at_least, check_types

Crop = Literal["center", "random", "random_resized", "stretch"]
Interpolation = Literal["bilinear", "bicubic"]


# The keys that change training images alone; so does crop, but for "stretch".
AUGMENTATION = (
    "crop_area",
    "flip",
    "color_jitter",
    "randaugment_layers",
    "randaugment_magnitude",
    "mixup",
    "cutmix",
)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data of a task. main's config has the same keys.

    Attributes:
        data: kind of data: "digits" (embedded), "folders" (or archives), "tfds" or "huggingface". "tfds" is
            TensorFlow Datasets as array_record.
        dataset: name of the data set; "{task}" stands for the task's name. Not for digits and folders.
        data_dir: folder of the data, unless it is embedded; "" for the library's own default.
        train_split: name of the training split, such as "train+validation".
        test_split: name of the test split, which is read once, at the end.
        validation_split: name of the validation split; "" for the data set's own, or a tenth of the training
            data. The data set's own is "validation" or "val", if it is not used otherwise; the tenth is of
            each class.
        label: name of the label among a record's fields.
        box: whether images are cut to the bounding box that the data set gives.
        unreadable: what happens with images that cannot be decoded: "refuse", or "skip" and count them.
        image_bits: number of bits that 16-bit images really use, such as 12; 0 for 16. With 12, the value
            4095 is white. 0 is refused if no training image has such values. Other images are unaffected.
        shots: training images per class of each task, drawn by the seed (few-shot); 0 for all.
        image_size: side of the images in pixels; 0 for the size of the backbone's published weights. For
            embedded data 0 is their own size.
        resize: length of the shorter side before a crop, in pixels; 0 for 8/7 of `image_size` (256 for 224).
        interpolation: "bilinear" or "bicubic".
        crop: how a training image is cut: "center", "random", "random_resized" or "stretch". "center" is as
            in evaluation, "random" anywhere in the resized image, "random_resized" a random part of the
            image, scaled. "stretch" makes the whole image a square, in evaluation too.
        crop_area: smallest and largest share of the image for "random_resized".
        flip: whether half of the training images are mirrored.
        color_jitter: strengths of random brightness, contrast, saturation and hue in training.
        randaugment_layers: operations that RandAugment draws for a training image; 0 for none.
        randaugment_magnitude: strength of these operations, from 0 to 10.
        mixup: alpha of mixup's Beta distribution; 0 for none. With cutmix too, a batch takes one by chance.
        cutmix: alpha of cutmix's Beta distribution; 0 for none.
        pixel_mean: mean of each channel of images in [0, 1]; the model sees (image - mean) / deviation.
        pixel_deviation: standard deviation of each channel of images in [0, 1].
        cache: where decoded and resized images are kept: "none", "memory" or "disk".
        cache_gigabytes: size of the cache; images that do not fit are decoded again in every epoch.
        cache_dir: folder of cached images, and of labels and hashes of data sets. Names of unreadable files
            are kept there, too.
        reader_threads: threads that read and decode; 0 for one per core.
        prefetch: number of batches that are ready ahead of the step, on the host and again on the device.
    """

    data: str = "digits"
    dataset: str = ""
    data_dir: str = ""
    train_split: str = "train"
    validation_split: str = ""
    test_split: str = "test"
    label: str = "label"
    box: bool = False
    unreadable: Literal["refuse", "skip"] = "refuse"
    image_bits: int = 0
    shots: int = 0
    image_size: int = 0
    resize: int = 0
    interpolation: Interpolation = "bilinear"
    crop: Crop = "center"
    crop_area: tuple[float, ...] = (0.08, 1.0)
    flip: bool = False
    color_jitter: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    randaugment_layers: int = 0
    randaugment_magnitude: float = 9.0
    mixup: float = 0.0
    cutmix: float = 0.0
    pixel_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    pixel_deviation: tuple[float, ...] = (0.229, 0.224, 0.225)
    cache: Literal["none", "memory", "disk"] = "memory"
    cache_gigabytes: float = 4.0
    cache_dir: str = "~/.cache/cwps_jax_data"
    reader_threads: int = 0
    prefetch: int = 2

    def __post_init__(self) -> None:
        check_types(self)
        at_least(self, shots=0, image_size=0, resize=0, randaugment_layers=0, mixup=0, cutmix=0)
        at_least(self, cache_gigabytes=0, reader_threads=0, prefetch=1)
        if self.image_bits and not 8 <= self.image_bits <= 31:
            raise CwpsError(f"config.image_bits = {self.image_bits}: must be from 8 to 31, or 0 for 16")
        if len(self.crop_area) != 2 or not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            raise CwpsError(
                f"config.crop_area = {self.crop_area}: must be the smallest and the largest share, in (0, 1]"
            )
        if len(self.color_jitter) != 4 or min(self.color_jitter) < 0 or self.color_jitter[3] > 0.5:
            raise CwpsError(
                f"config.color_jitter = {self.color_jitter}: must be four strengths of at least 0, for "
                "brightness, contrast, saturation and hue (at most 0.5)"
            )
        if not 0 <= self.randaugment_magnitude <= 10:
            raise CwpsError(
                f"config.randaugment_magnitude = {self.randaugment_magnitude}: must be in [0, 10]"
            )
        if len(self.pixel_mean) != 3 or len(self.pixel_deviation) != 3 or min(self.pixel_deviation) <= 0:
            raise CwpsError(
                f"config.pixel_mean = {self.pixel_mean}, config.pixel_deviation = {self.pixel_deviation}: "
                "must be three numbers each, the deviations above 0"
            )
        if self.resize and self.image_size and self.resize < self.image_size:
            raise CwpsError(
                f"config.resize = {self.resize}: must be at least config.image_size = {self.image_size}"
            )

    @property
    def shorter_side(self) -> int:
        """Length of a resized image's shorter side, in pixels."""
        return self.resize or round(self.image_size * 8 / 7)
