"""The independent models: every published backbone of ours, and a shrunk one of each kind."""

import functools
from collections.abc import Mapping
from typing import Any

from torch import nn

from parity import modules, original_names
from parity.reference import Reference, Size
from parity.timm_alone import (
    decode_arch_def,
    densenet,
    efficientnet,
    mlp_mixer,
    resnet,
    timm,
    vision_transformer,
)

SMALL = ((32, 32), (33, 47))
# The original Flax models' GELU.
GELU_BY_TANH = functools.partial(nn.GELU, approximate="tanh")


def _timm(name: str, **settings: Any) -> Any:
    """Returns a function (size) -> one of timm's models; for transformers of that image size."""

    def build(size: Size) -> nn.Module:
        sized = {"img_size": size[0]} if name.startswith(("vit", "mixer")) else {}
        return timm.create_model(name, **sized, **settings)

    return build


def _of(module: type[nn.Module], **settings: Any) -> Any:
    """Returns a function (size) -> module that does not depend on the size."""
    return lambda size: module(**settings)


def _sized(module: type[nn.Module], argument: str, **settings: Any) -> Any:
    """Returns a function (size) -> module that takes the images' side."""
    return lambda size: module(**{argument: size[0]}, **settings)


def _vits(name: str, sizes: tuple[Size, ...], timm_build: Any, original_build: Any, own: Mapping[str, int]):
    """Returns the references of a ViT: timm's keys, torchvision's, the original ones."""
    return (
        Reference(name, "timm", timm_build, sizes),
        Reference(name, "torchvision", _sized(modules.VisionTransformer, "image_size", **own), sizes),
        Reference(
            name,
            "original",
            original_build,
            sizes,
            options={"approximate_gelu": True},
            to_file=functools.partial(original_names.vit_arrays, heads=own["heads"]),
            load=original_names.load_vit,
            suffix=".npz",
        ),
    )


def _mixers(name: str, size: int, timm_build: Any, original_build: Any):
    """Returns the references of a Mixer, which are for one image size: timm's keys, the original ones."""
    sizes = ((size, size),)
    return (
        Reference(name, "timm", timm_build, sizes),
        Reference(
            name,
            "original",
            original_build,
            sizes,
            options={"approximate_gelu": True},
            to_file=original_names.mixer_arrays,
            load=original_names.load_mixer,
            suffix=".npz",
        ),
    )


def _densenets(name: str, sizes: tuple[Size, ...], build: Any):
    """Returns the references of a DenseNet: torchvision's keys as they are, and as first published."""
    return (
        Reference(name, "torchvision", build, sizes),
        Reference(
            name,
            "original",
            build,
            sizes,
            to_file=original_names.densenet_arrays,
            load=original_names.load_densenet,
        ),
    )


_IMAGENET = ((224, 224), (97, 131))
_PATCHES = ((224, 224), (160, 160))

FULL = (
    *(
        Reference(name, "torchvision", _timm(name))
        for name in ("resnet18", "resnet34", "resnet50", "resnet101")
    ),
    *(
        Reference(
            f"resnet{6 * blocks + 2}_cifar", "torchvision", _of(modules.SmallResNet, blocks=blocks), SMALL
        )
        for blocks in (3, 5, 7, 9)
    ),
    Reference(
        "resnet8", "torchvision", _of(modules.SmallResNet, blocks=1, projection=True), ((12, 12), (17, 23))
    ),
    *_densenets("densenet121", _IMAGENET, _timm("densenet121")),
    Reference("efficientnet_b0", "torchvision", _of(modules.EfficientNet)),
    Reference("efficientnet_b0", "timm", _timm("efficientnet_b0")),
    Reference("squeezenet1_1", "torchvision", _of(modules.SqueezeNet)),
    *(
        one
        for name, theirs, width in (("ti", "tiny", 192), ("s", "small", 384), ("b", "base", 768))
        for one in _vits(
            f"vit_{name}16",
            _PATCHES,
            _timm(f"vit_{theirs}_patch16_224"),
            _timm(f"vit_{theirs}_patch16_224", act_layer=GELU_BY_TANH),
            {"width": width, "depth": 12, "heads": width // 64},
        )
    ),
    Reference(
        "vit_nano4",
        "timm",
        _sized(
            vision_transformer.VisionTransformer,
            "img_size",
            patch_size=4,
            embed_dim=64,
            depth=3,
            num_heads=4,
            num_classes=10,
        ),
        ((12, 12), (20, 20)),
    ),
    *(
        one
        for name in ("mixer_s16", "mixer_b16")
        for size in (224, 160)
        for one in _mixers(name, size, _timm(f"{name}_224"), _timm(f"{name}_224", act_layer=GELU_BY_TANH))
    ),
)

_CLASSES = 7
_ARCHITECTURE = [
    ["ds_r1_k3_s1_e1_c8_se0.25"],
    ["ir_r2_k3_s2_e2_c16_se0.25"],
    ["ir_r1_k5_s2_e2_c16_se0.25"],
    ["ir_r1_k3_s2_e2_c24_se0.25"],
    ["ir_r1_k5_s1_e2_c24_se0.25"],
    ["ir_r1_k5_s2_e2_c24_se0.25"],
    ["ir_r1_k3_s1_e2_c32_se0.25"],
]
_STAGES = (
    (1, 3, 1, 8, 1),
    (2, 3, 2, 16, 2),
    (2, 5, 2, 16, 1),
    (2, 3, 2, 24, 1),
    (2, 5, 1, 24, 1),
    (2, 5, 2, 24, 1),
    (2, 3, 1, 32, 1),
)
_VIT = {"width": 32, "depth": 2, "heads": 4, "patch_size": 4, "num_classes": _CLASSES}
_TIMM_VIT = {"embed_dim": 32, "depth": 2, "num_heads": 4, "patch_size": 4, "num_classes": _CLASSES}
_TIMM_MIXER = {"embed_dim": 32, "num_blocks": 2, "patch_size": 4, "num_classes": _CLASSES}
_SIDES = ((48, 48), (33, 47))


def _shrunk(module: type[nn.Module], **settings: Any) -> Any:
    return _sized(module, "img_size", **settings)


SHRUNK = (
    Reference(
        "resnet_basic",
        "torchvision",
        _of(
            resnet.ResNet,
            block=resnet.BasicBlock,
            layers=(1, 2, 1, 1),
            channels=(64, 8, 16, 24),
            num_classes=_CLASSES,
        ),
        _SIDES,
    ),
    Reference(
        "resnet_bottleneck",
        "torchvision",
        _of(
            resnet.ResNet,
            block=resnet.Bottleneck,
            layers=(1, 2, 1, 1),
            channels=(64, 4, 4, 8),
            num_classes=_CLASSES,
        ),
        _SIDES,
    ),
    Reference(
        "resnet_cifar",
        "torchvision",
        _of(modules.SmallResNet, blocks=1, width=8, num_classes=_CLASSES),
        ((16, 16), (15, 21)),
    ),
    *_densenets(
        "densenet",
        _SIDES,
        _of(densenet.DenseNet, growth_rate=8, block_config=(2, 3), num_classes=_CLASSES),
    ),
    Reference(
        "efficientnet",
        "torchvision",
        _of(modules.EfficientNet, stages=_STAGES, num_classes=_CLASSES, stem_width=8, last_width=48),
        _SIDES,
        gain=1.3,
    ),
    Reference(
        "efficientnet",
        "timm",
        lambda size: efficientnet.EfficientNet(
            decode_arch_def(_ARCHITECTURE), _CLASSES, num_features=48, stem_size=8, act_layer=nn.SiLU
        ),
        _SIDES,
        gain=1.3,
    ),
    Reference(
        "squeezenet",
        "torchvision",
        _of(
            modules.SqueezeNet,
            widths=(None, 4, 4, None, 8, 8, None, 12),
            num_classes=_CLASSES,
            stem_width=8,
        ),
        _SIDES,
    ),
    *_vits(
        "vit",
        ((16, 16), (12, 12), (24, 24)),
        _shrunk(vision_transformer.VisionTransformer, **_TIMM_VIT),
        _shrunk(vision_transformer.VisionTransformer, **_TIMM_VIT, act_layer=GELU_BY_TANH),
        _VIT,
    ),
    *(
        one
        for size in (16, 24)
        for one in _mixers(
            "mixer",
            size,
            _shrunk(mlp_mixer.MlpMixer, **_TIMM_MIXER),
            _shrunk(mlp_mixer.MlpMixer, **_TIMM_MIXER, act_layer=GELU_BY_TANH),
        )
    ),
)
