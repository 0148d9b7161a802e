"""timm without torchvision, which pins torch builds of its own: import timm from here."""

import enum
import importlib.util
import sys
import types


class _Stub(types.ModuleType):
    __path__: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return sys.modules.get(f"{self.__name__}.{name}") or type(name, (), {})


def _stub_torchvision() -> None:
    """Puts empty modules for all that timm imports of torchvision in `sys.modules`."""
    modes = enum.Enum("InterpolationMode", "NEAREST BILINEAR BICUBIC BOX HAMMING LANCZOS")
    for name in (
        "torchvision",
        "torchvision.datasets",
        "torchvision.models",
        "torchvision.models.feature_extraction",
        "torchvision.ops",
        "torchvision.ops.misc",
        "torchvision.transforms",
        "torchvision.transforms.functional",
    ):
        sys.modules[name] = _Stub(name)
    for name in ("torchvision.transforms", "torchvision.transforms.functional"):
        sys.modules[name].InterpolationMode = modes  # type: ignore[attr-defined]


if importlib.util.find_spec("torchvision") is None:
    _stub_torchvision()

import timm  # noqa: E402
from timm.layers import resample_abs_pos_embed  # noqa: E402
from timm.models import densenet, efficientnet, mlp_mixer, resnet, vision_transformer  # noqa: E402
from timm.models._efficientnet_builder import decode_arch_def  # noqa: E402

__all__ = [
    "decode_arch_def",
    "densenet",
    "efficientnet",
    "mlp_mixer",
    "resample_abs_pos_embed",
    "resnet",
    "timm",
    "vision_transformer",
]
